//! The command line: what can be typed, and where the configuration is found.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand};
use greenroom::{
    auth::Scope,
    config::{Inputs, Loaded, Period, Report},
    copy::End,
    forward::Line,
    operator::Which,
};

/// The variable that names the configuration file.
const CONFIG: &str = "GREENROOM_CONFIG";

/// Gives every conversation its own sandboxed computer, over MCP.
#[derive(Debug, Parser)]
#[command(name = "greenroom", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where settings come from, beside `GREENROOM_*`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// The configuration file [default: greenroom/greenroom.toml in ~/.config, else in /etc]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, such as pool.python.warm=4; wins over variables and the file
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serves MCP over streamable HTTP
    Serve {
        /// Where, instead of what is configured
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<String>,
    },
    /// Serves MCP over standard input and output, by the Greenroom that runs or one that it starts in the background
    Stdio {
        /// The conversation that this process is for
        #[arg(long, value_name = "ID")]
        conversation: Option<String>,
        /// Does without another process: everything ends with this one, but for the conversations' sandboxes
        #[arg(long)]
        embedded: bool,
        /// A folder of this machine that the tools may copy files from, and new files to
        #[arg(long, value_name = "DIR")]
        share: Option<PathBuf>,
    },
    /// Copies a file into or out of a conversation's sandbox; no server is needed
    Cp {
        /// A file, CONVERSATION:PATH, or - for standard input
        from: End,
        /// A file or folder, CONVERSATION:PATH, or - for standard output
        to: End,
        /// The conversation's pool, if not the default one
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
    },
    /// Leads ports of this machine to ports inside a conversation's sandbox, until it is interrupted; no server is needed
    Forward {
        /// The conversation
        #[arg(long, value_name = "ID")]
        conversation: String,
        /// The conversation's pool, if not the default one
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// [ADDRESS:]LOCAL:INSIDE, such as 5432:5432
        #[arg(required = true, value_name = "LOCAL:INSIDE")]
        lines: Vec<Line>,
    },
    /// Shows the sandboxes of this deployment, or ends conversations'; no server needs to run
    Sessions {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(subcommand)]
        end: Option<SessionsCommand>,
    },
    /// Shows what no server will clear away, and clears it away
    Sweep {
        /// Shows it only
        #[arg(long)]
        dry_run: bool,
    },
    /// Has the servers that run read their configuration again: pools come, change and go, sessions stay
    Reload,
    /// API keys: who may call a server that others can reach
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// What `stdio` starts: serves processes until none has been there for a while
    #[command(hide = true)]
    Background,
    /// Checks that everything works, by booting one sandbox
    Doctor,
    /// Prints the configuration in force, with the source of each value
    Config,
    /// Prints the version
    Version,
}

/// What to do with keys. A running server needs no restart.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Makes one, and prints it: it cannot be shown again
    Create {
        /// What to call it
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        name: String,
        /// What its holder may do: run, files or admin, once for each [default: run and files]
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<Scope>,
        /// A pool that it is for, once for each; the first is the one of calls that name none [default: all]
        #[arg(long = "pool", value_name = "NAME")]
        pools: Vec<String>,
        /// How long it is good, such as 90d [default: until it is revoked]
        #[arg(long, value_name = "TIME")]
        expires: Option<Period>,
    },
    /// Shows them, but for the keys themselves
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Makes another one in its place, under the same id, with the same sessions, and prints it
    Rotate {
        /// Its id, as the list shows it
        #[arg(value_name = "ID")]
        id: String,
        /// How long the old one is good beside it, such as 1d
        #[arg(long, value_name = "TIME", default_value = "0s")]
        grace: Period,
    },
    /// Takes one back: the next request with it is refused
    Revoke {
        /// Its id, as the list shows it
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// Ends sessions; the next call of each hears of it
    End {
        /// How their session or sandbox begins, as the list shows it
        #[arg(
            value_name = "BEGINNING",
            required_unless_present = "all",
            conflicts_with = "all"
        )]
        beginnings: Vec<String>,
        /// Every one
        #[arg(long)]
        all: bool,
    },
}

impl SessionsCommand {
    pub(crate) fn which(self) -> Which {
        let Self::End { beginnings, all } = self;
        if all { Which::All } else { Which::Of(beginnings) }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("the configuration {} cannot be read: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Report(#[from] Report),
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl Cli {
    /// Reads the configuration from wherever this command line and the environment say.
    pub(crate) fn load(&self) -> Result<Loaded, ConfigError> {
        self.settings.load(self.command.listen())
    }
}

impl Command {
    /// `--listen`.
    pub(crate) fn listen(&self) -> Option<&str> {
        let Self::Serve { listen } = self else {
            return None;
        };
        listen.as_deref()
    }
}

impl Settings {
    /// Reads the configuration; `listen` wins over all that it says.
    pub(crate) fn load(&self, listen: Option<&str>) -> Result<Loaded, ConfigError> {
        // Values that are no text cannot be settings.
        let env: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let (file, text) = self.file(&env)?;
        let mut flags = self.set.clone();
        if let Some(listen) = listen {
            flags.push(("listen".to_owned(), listen.to_owned()));
        }
        Ok(Loaded::read(&Inputs {
            file,
            text,
            env: env.into_iter().filter(|(name, _)| name != CONFIG).collect(),
            flags,
            root: rustix::process::geteuid().is_root(),
            cpus: std::thread::available_parallelism().map_or(2, usize::from),
        })?)
    }

    /// The same settings, for a process that this one starts.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let config = self.config.iter().flat_map(|path| {
            // It is started in another folder.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            [OsString::from("--config"), path.into_os_string()]
        });
        let set = self
            .set
            .iter()
            .flat_map(|(key, value)| ["--set".into(), format!("{key}={value}").into()]);
        config.chain(set).collect()
    }

    /// The file that was named has to be there; the ones that are looked for need not.
    ///
    /// Not the working directory: hosts start `greenroom stdio` in the folder that they work on, and what a
    /// stranger's repository holds must not configure the sandbox for it.
    fn file(&self, env: &[(String, String)]) -> Result<(Option<PathBuf>, String), ConfigError> {
        let var = |name: &str| {
            env.iter()
                .find(|(n, value)| n == name && !value.is_empty())
                .map(|(_, value)| value)
        };
        if let Some(path) = self.config.clone().or_else(|| var(CONFIG).map(PathBuf::from)) {
            return match fs::read_to_string(&path) {
                Ok(text) => Ok((Some(path), text)),
                Err(source) => Err(ConfigError::File { path, source }),
            };
        }
        let home = var("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| var("HOME").map(|home| Path::new(home).join(".config")));
        let folders = home.into_iter().chain([PathBuf::from(OsStr::new("/etc"))]);
        for path in folders.map(|folder| folder.join("greenroom/greenroom.toml")) {
            match fs::read_to_string(&path) {
                Ok(text) => return Ok((Some(path), text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ConfigError::File { path, source }),
            }
        }
        Ok((None, String::new()))
    }
}
