//! What a sandbox is told before anything of its guest's starts: its environment, and which program of its image runs.

use std::collections::BTreeMap;

use greenroom_protocol::{App, Begin, BootRequest, Masked, Probe};
use serde::{Deserialize, Serialize};

/// What a pool tells each of its sandboxes, over the channel: nothing of it is in an image or a container's
/// configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Variables of the guest's processes.
    pub env: BTreeMap<String, Masked>,
    /// The image's own program, in pools of containers.
    pub app: Option<AppSpec>,
}

/// How a pool wants its image's program to run; what it leaves open is the image's to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppSpec {
    /// Instead of the image's entrypoint; its own arguments go with that.
    pub command: Vec<String>,
    /// Instead of the image's arguments.
    pub args: Option<Vec<String>>,
    /// Instead of the image's user.
    pub user: Option<String>,
    /// When it counts as up.
    pub startup: Option<Probe>,
    /// When it counts as down.
    pub liveness: Option<Probe>,
}

/// What an image says of its program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Program {
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `CMD`.
    pub cmd: Vec<String>,
    /// `WORKDIR`.
    pub work_dir: String,
    /// `USER`.
    pub user: String,
    /// `HOME`, where it sets that: an engine replaces it in PID 1's environment.
    pub home: Option<String>,
}

impl Start {
    /// What an agent is to do until it is told.
    #[must_use]
    pub fn begin(&self) -> Begin {
        match &self.app {
            Some(_) => Begin::WithApp,
            None if self.env.is_empty() => Begin::AtOnce,
            None => Begin::Told,
        }
    }

    /// What the agent is told for an image with this program.
    ///
    /// # Errors
    /// There is nothing to run.
    pub fn request(&self, program: &Program) -> Result<BootRequest, NoProgram> {
        let mut env = self.env.clone();
        let app = match &self.app {
            Some(spec) => {
                if let Some(home) = &program.home {
                    env.entry("HOME".to_owned())
                        .or_insert_with(|| Masked::new(home.clone()));
                }
                Some(spec.app(program)?)
            }
            None => None,
        };
        Ok(BootRequest { env, app })
    }
}

impl AppSpec {
    /// The user that it runs as, in the image's words.
    #[must_use]
    pub fn user(&self, program: &Program) -> String {
        self.user.clone().unwrap_or_else(|| program.user.clone())
    }

    fn app(&self, program: &Program) -> Result<App, NoProgram> {
        let own = self.command.is_empty();
        let entrypoint = if own { &program.entrypoint } else { &self.command };
        let args = match (&self.args, own) {
            (Some(args), _) => args.as_slice(),
            (None, true) => &program.cmd,
            (None, false) => &[],
        };
        let argv = [entrypoint, args].concat();
        if argv.first().is_none_or(String::is_empty) {
            return Err(NoProgram);
        }
        Ok(App {
            argv,
            work_dir: match program.work_dir.as_str() {
                "" => "/".to_owned(),
                place => place.to_owned(),
            },
            startup: self.startup.clone(),
            liveness: self.liveness.clone(),
        })
    }
}

/// An image names no program, and neither does its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has no ENTRYPOINT and no CMD; say what to run with the pool's command")]
pub struct NoProgram;

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_runs_is_the_images_unless_the_pool_says_otherwise() {
        for (entrypoint, cmd, command, args, expected) in [
            ("/app", "serve", "", None, Some("/app serve")),
            ("/app", "serve", "", Some("check -v"), Some("/app check -v")),
            ("/app", "serve", "", Some(""), Some("/app")),
            ("/app", "serve", "/sh -c", None, Some("/sh -c")),
            ("/app", "serve", "/sh -c", Some("x"), Some("/sh -c x")),
            ("", "bash", "", None, Some("bash")),
            ("", "", "", None, None),
            ("", "", "", Some("x"), Some("x")),
        ] {
            let spec = AppSpec {
                command: words(command),
                args: args.map(words),
                ..AppSpec::default()
            };
            let program = Program {
                entrypoint: words(entrypoint),
                cmd: words(cmd),
                ..Program::default()
            };
            let app = spec.app(&program).ok();
            assert_eq!(app.as_ref().map(|app| app.argv.clone()), expected.map(words));
            assert!(app.is_none_or(|app| app.work_dir == "/"));
        }
    }

    #[test]
    fn the_images_home_stays_unless_it_is_told_otherwise() {
        let program = Program {
            cmd: words("x"),
            home: Some("/srv".into()),
            ..Program::default()
        };
        let mut start = Start {
            app: Some(AppSpec::default()),
            ..Start::default()
        };
        assert_eq!(start.begin(), Begin::WithApp);
        assert_eq!(start.request(&program).unwrap().env["HOME"].reveal(), "/srv");
        start.env.insert("HOME".into(), Masked::new("/mine".into()));
        assert_eq!(start.request(&program).unwrap().env["HOME"].reveal(), "/mine");
        start.app = None;
        assert_eq!(start.begin(), Begin::Told);
        assert_eq!(start.request(&program).unwrap().env.len(), 1);
        assert_eq!(Start::default().begin(), Begin::AtOnce);
    }
}
