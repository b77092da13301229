//! Arguments, configuration, log, server: wired together, and exit codes. Nothing else.

mod cli;

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use clap::Parser as _;
use greenroom::{
    attach::{self, AttachError, Attachment, Socket, Start},
    auth::{
        Gate, GateError,
        commands::{self, Wanted},
    },
    config::{Config, Loaded, LogFormat},
    control,
    conversation::ConversationId,
    copy::copy,
    doctor,
    forward::{Line, forward},
    mcp,
    operator::{self, Broom, Format},
    serve::{self, Server, Source},
    share::Share,
};
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use self::cli::{Cli, Command, KeyCommand, SessionsCommand, Settings};

/// The command line or the configuration is wrong: `EX_USAGE`.
const WRONG: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, and go to standard output.
            let code = if error.use_stderr() {
                ExitCode::from(WRONG)
            } else {
                ExitCode::SUCCESS
            };
            drop(error.print());
            return code;
        }
    };
    let loaded = match cli.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            complain(&format!("{error:#}"));
            return ExitCode::from(WRONG);
        }
    };
    match run(cli, loaded) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(Cli { settings, command }: Cli, loaded: Loaded) -> Result<ExitCode> {
    match command {
        Command::Version => print(&format!("greenroom {}\n", env!("CARGO_PKG_VERSION")))?,
        Command::Config => print(&loaded.to_toml())?,
        Command::Sessions { json, end } => {
            log(&loaded.config)?;
            let format = if json { Format::Json } else { Format::Table };
            let end = end.map(SessionsCommand::which);
            print(&runtime()?.block_on(operator::sessions(&loaded.config, format, end))?)?;
        }
        Command::Sweep { dry_run } => {
            log(&loaded.config)?;
            let broom = if dry_run { Broom::Dry } else { Broom::Wet };
            print(&runtime()?.block_on(operator::sweep(&loaded.config, broom))?)?;
        }
        Command::Key { command } => key(&loaded.config, command)?,
        Command::Doctor => {
            log(&loaded.config)?;
            let report = runtime()?.block_on(doctor::run(&loaded.config));
            print(&report.to_string())?;
            return Ok(if report.is_well() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        Command::Cp { from, to, pool } => {
            let mut config = loaded.config;
            // Of a copy its errors are enough, unless somebody asks for more.
            if config.log == "info" {
                config.log = "error".to_owned();
            }
            log(&config)?;
            runtime()?.block_on(copy(config, &from, &to, pool.as_deref()))?;
        }
        Command::Forward {
            conversation,
            pool,
            lines,
        } => {
            let mut config = loaded.config;
            if config.log == "info" {
                config.log = "error".to_owned();
            }
            log(&config)?;
            let ready = |lines: &[Line]| {
                let shown = lines
                    .iter()
                    .map(|line| format!("{} leads to port {} inside\n", line.here, line.inside));
                if let Err(error) = print(&shown.collect::<String>()) {
                    tracing::debug!(%error, "nobody reads where it is listened");
                }
            };
            let forwarding = forward(config, pool.as_deref(), &conversation, &lines, ready);
            runtime()?.block_on(forwarding)?;
        }
        Command::Reload => {
            log(&loaded.config)?;
            return runtime()?.block_on(reload(&loaded.config));
        }
        Command::Serve { listen } => {
            log(&loaded.config)?;
            // Before anything is started: a server that would let anybody in, or nobody, is a mistake.
            let gate = match Gate::open(&loaded.config) {
                Err(error @ GateError::Nobody { .. }) => {
                    complain(&error.to_string());
                    return Ok(ExitCode::from(WRONG));
                }
                gate => gate?,
            };
            let source = source(settings, listen);
            runtime()?.block_on(async {
                let server = Server::start(Arc::new(loaded.config.clone())).await?;
                server.reloading(loaded, source).http(gate).await
            })?;
        }
        Command::Background => {
            log(&loaded.config)?;
            if let Err(error) = attach::detach() {
                tracing::debug!(%error, "the terminal is not left");
            }
            runtime()?.block_on(background(loaded, source(settings, None)))?;
        }
        Command::Stdio {
            conversation,
            embedded,
            share,
        } => {
            log(&loaded.config)?;
            let conversation = conversation
                .map(|id| ConversationId::parse(&id))
                .transpose()
                .context("--conversation")?;
            let share = share.as_deref().map(Share::open).transpose().context("--share")?;
            // A folder is shared by the process that was told so, not by one that others share.
            let alone = embedded || share.is_some();
            if alone || !attached(&settings, &loaded.config, conversation.clone())? {
                runtime()?.block_on(async {
                    Server::sharing(Arc::new(loaded.config), share)
                        .await?
                        .stdio(conversation)
                        .await
                })?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The key alone goes to standard output, so that a script can take it.
fn key(config: &Config, command: KeyCommand) -> Result<()> {
    match command {
        KeyCommand::Create {
            name,
            scopes,
            pools,
            expires,
        } => {
            let wanted = Wanted {
                name,
                scopes,
                pools,
                lasts: expires.map(|period| period.0),
            };
            let made = commands::create(config, wanted)?;
            print(&format!("{}\n", made.key.reveal()))?;
            complain(&made.note);
        }
        KeyCommand::Rotate { id, grace } => {
            let made = commands::rotate(config, &id, grace.0)?;
            print(&format!("{}\n", made.key.reveal()))?;
            complain(&made.note);
        }
        KeyCommand::List { json } => {
            let format = if json { Format::Json } else { Format::Table };
            print(&commands::list(config, format)?)?;
        }
        KeyCommand::Revoke { id } => print(&commands::revoke(config, &id)?)?,
    }
    Ok(())
}

/// Where a server reads its configuration again.
fn source(settings: Settings, listen: Option<String>) -> Source {
    Box::new(move || {
        settings
            .load(listen.as_deref())
            .map_err(|error| error.to_string())
    })
}

/// Tells the servers of this state directory, and prints what each has done.
async fn reload(config: &Config) -> Result<ExitCode> {
    let state_dir = config.state_dir.display();
    let asked = control::ask_all(&config.state_dir, control::Request::Reload).await;
    let answers = asked.with_context(|| format!("{state_dir} cannot be read"))?;
    anyhow::ensure!(
        !answers.is_empty(),
        "no Greenroom runs with the state directory {state_dir}"
    );
    let mut code = ExitCode::SUCCESS;
    for (pid, answer) in answers {
        match answer {
            Ok(control::Answer::Done { text }) => print(&format!("server {pid}: {text}\n"))?,
            Ok(control::Answer::Refused { text }) => {
                complain(&format!("server {pid} goes on as it was: {text}"));
                code = ExitCode::FAILURE;
            }
            Err(error) => {
                complain(&format!("server {pid} did not answer: {error}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

async fn background(loaded: Loaded, source: Source) -> Result<()> {
    match Socket::bind(&loaded.config.state_dir)? {
        Some(socket) => {
            let server = Server::start(Arc::new(loaded.config.clone())).await?;
            Ok(server.reloading(loaded, source).background(socket).await?)
        }
        // Another one was quicker, and serves whoever wanted this one.
        None => Ok(()),
    }
}

/// Serves the host by the Greenroom that runs. False: that is another one than this process was asked to be, and
/// nothing has been read yet.
fn attached(settings: &Settings, config: &Config, conversation: Option<ConversationId>) -> Result<bool> {
    let secret = serve::secret(config)?;
    let mut arguments = settings.arguments();
    arguments.push("background".into());
    let attachment = Attachment {
        start: Start {
            state_dir: config.state_dir.clone(),
            program: std::env::current_exe().context("this program cannot be found")?,
            arguments,
        },
        digest: attach::digest(config, &secret),
        conversation,
        carrier: mcp::mint(&secret)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no thread could be started")?;
    let relayed = runtime.block_on(attach::relay(
        &attachment,
        tokio::io::stdin(),
        tokio::io::stdout(),
    ));
    // A read of standard input cannot be taken back, and must not keep the process.
    runtime.shutdown_background();
    match relayed {
        Ok(()) => Ok(true),
        Err(AttachError::Refused(reason)) => {
            tracing::warn!(%reason, "this process serves its host by itself");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no threads could be started")
}

/// Logs go to standard error: on stdio the output is the protocol's.
fn log(config: &Config) -> Result<()> {
    // At `info` rmcp logs ids of transport sessions, which are secrets; whoever wants them says so.
    let filter = if config.log.contains("rmcp") {
        config.log.clone()
    } else {
        format!("rmcp=warn,{}", config.log)
    };
    let filter = EnvFilter::try_new(filter).context("log")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would say on standard error that standard error is gone, and panic over it.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

fn print(text: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .context("standard output")
}

fn complain(text: &str) {
    // Without a standard error there is nobody to tell.
    drop(writeln!(std::io::stderr(), "greenroom: {}", text.trim_end()));
}
