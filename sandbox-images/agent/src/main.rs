//! `greenroom-agent`: arguments in, exit code out; what it does is the library's.
//!
//! | command | is |
//! |---|---|
//! | `init JSON` | PID 1 of a sandbox, until its lease ends; exits with that reason's code |
//! | `relay [SOCKET]` | one end of a channel, on standard input and output |
//! | `files DIR` | the guest's hands: started by `init` as the guest, opens and names files for it |
//! | `errand …` | one thing to do as the guest, started by `init` |

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write as _},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    pin::pin,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use greenroom_agent::{
    Agent, Parts,
    child::{self, Quarters},
    errand::{self, ERRAND},
    files::{self, FileUser, Files},
    kernel, platform, relay, user,
};
use greenroom_protocol::{AgentConfig, EndReason, LastWords, SOCKET_PATH};
use rustix::process::Signal;
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// The exit code of wrong arguments, as in sysexits.h.
const USAGE: u8 = 64;
/// As a shell would report it: ended by SIGTERM.
const TERMINATED: u8 = 143;
/// They move the bytes of files, a piece at a time: more of them would only take memory.
const BLOCKING_THREADS: usize = 8;
/// Between two attempts to accept a connection while the system refuses.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    match arguments.as_slice() {
        [command, config] if *command == "init" => report(init(config), EndReason::Failed.exit_code()),
        [command] if *command == "relay" => report(run_relay(Path::new(SOCKET_PATH)), 1),
        [command, socket] if *command == "relay" => report(run_relay(Path::new(socket)), 1),
        [command, work_dir] if *command == "files" => report(run_files(work_dir), 1),
        [command, arguments @ ..] if *command == ERRAND => {
            let arguments = arguments
                .iter()
                .map(|argument| argument.to_string_lossy().into_owned());
            errand::main(&arguments.collect::<Vec<_>>())
        }
        _ => {
            eprintln!("usage: greenroom-agent init JSON | relay [SOCKET]");
            ExitCode::from(USAGE)
        }
    }
}

/// Nobody reads a sandbox's standard error but whoever looks into a failed start or runs this by hand.
fn report(result: anyhow::Result<ExitCode>, failure: u8) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("greenroom-agent: {error:#}");
        ExitCode::from(failure)
    })
}

fn run_relay(socket: &Path) -> anyhow::Result<ExitCode> {
    // Files instead of std's handles, which buffer and lock.
    let input = fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
    relay::run(input, output, socket)?;
    Ok(ExitCode::SUCCESS)
}

fn run_files(work_dir: &OsStr) -> anyhow::Result<ExitCode> {
    let work_dir = work_dir.to_str().context("the work directory is not UTF-8")?;
    files::serve(work_dir)?;
    Ok(ExitCode::SUCCESS)
}

fn init(config: &OsStr) -> anyhow::Result<ExitCode> {
    let config = config.to_str().context("the configuration is not UTF-8")?;
    let config: AgentConfig = serde_json::from_str(config).context("the configuration does not fit")?;
    // One thread: a sandbox has about one processor, and a run is a matter of passing bytes on.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("no runtime")?;
    let code = runtime.block_on(serve(&config));
    // What still runs goes down with this process; waiting for it could take for ever.
    runtime.shutdown_background();
    code
}

async fn serve(config: &AgentConfig) -> anyhow::Result<ExitCode> {
    let listener = listen(Path::new(&config.socket))?;
    let mut terminate = signal(SignalKind::terminate())?;
    // A file that has grown to its limit is a failed write and not the end of the sandbox. What this process starts has
    // the signal as it was: a handler does not outlive an exec.
    let _too_large = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?;
    let agent = Agent::start(config, parts(config)?);
    let mut reaper = pin!(child::reap_orphans());
    loop {
        tokio::select! {
            biased;
            // It ends only in an error.
            Err(error) = &mut reaper => return Err(error).context("orphans cannot be reaped"),
            reason = agent.ended() => {
                leave(agent.last_words(reason));
                return Ok(ExitCode::from(reason.exit_code()));
            }
            _ = terminate.recv() => return Ok(ExitCode::from(TERMINATED)),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let agent = agent.clone();
                    tokio::spawn(async move { agent.serve_relay(stream).await });
                }
                // Out of descriptors or memory: what is open still works, and closing some of it helps.
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

/// What an engine keeps of PID 1 is its exit code and, in pools of containers, its output.
fn leave(words: Option<LastWords>) {
    let Some(words) = words else { return };
    // Strings and numbers always serialise.
    let json = serde_json::to_string(&words).unwrap_or_default();
    let line = format!("{}{json}\n", LastWords::MARK);
    // Where nobody keeps it, the exit code says enough.
    drop(io::stdout().write_all(line.as_bytes()));
}

fn parts(config: &AgentConfig) -> anyhow::Result<Parts> {
    // Before the first guest process starts.
    let platform = platform::look();
    let program = std::env::current_exe().context("the agent does not find itself")?;
    let mut quarters = Quarters::new(config, program);
    if let Some(user) = &config.user {
        let ids = user::ids(user).map_err(anyhow::Error::msg)?;
        quarters = quarters.of(ids);
        // Root has no way around permissions here, so what it is to write in is its own as well.
        std::os::unix::fs::chown(&config.work_dir, Some(ids.uid), Some(ids.gid))
            .with_context(|| format!("cannot hand over {}", config.work_dir))?;
    }
    let user = if quarters.is_apart() {
        FileUser::Guest(quarters.clone())
    } else {
        FileUser::Own
    };
    Ok(Parts {
        files: Files::start(&config.work_dir, user)
            .with_context(|| format!("cannot work in {}", config.work_dir))?
            .in_quarters(quarters.clone()),
        kernels: kernel::all(config, quarters.clone()),
        quarters,
        platform,
    })
}

/// Only the agent's own user gets to the socket: the folder is closed before there is one in it.
fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    let Some(folder) = socket.parent() else {
        bail!("{} is no place for a socket", socket.display());
    };
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close {}", folder.display()))?;
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot clear {}", socket.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot close {}", socket.display()))?;
    Ok(listener)
}
