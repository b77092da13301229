//! What a model is told once, at the start.

use greenroom_protocol::WORK_DIR;

use super::render::span;
use crate::config::{ArchivePlace, Config, PoolConfig};

/// The server's instructions, with the numbers of the default pool.
pub(super) fn instructions(config: &Config, pool: Option<&PoolConfig>) -> String {
    let limits = pool.map_or_else(String::new, |pool| {
        format!(
            "Each sandbox has {} processor(s), {} memory and {} disk, and no network. It ends after {} without use, at the latest \
             after {}; then its variables are gone{}. ",
            pool.cpus,
            pool.memory,
            pool.disk,
            span(pool.idle),
            span(pool.lifetime),
            match config.archive.place {
                ArchivePlace::Off => " and so are its files",
                ArchivePlace::StateDir | ArchivePlace::Folder(_) | ArchivePlace::S3 { .. } => {
                    ", and a fresh one gets its files"
                }
            },
        )
    });
    format!(
        "Greenroom gives this conversation its own sandboxed Linux computer. execute_code runs Python, bash or TypeScript in it; variables, imports \
         and files stay from call to call. Files are in {WORK_DIR}; paths may be relative to it.\n\n\
         If an answer tells a conversation_id, pass exactly that in every later call, of all tools: it is what leads back to the same \
         sandbox. If none was told, leave conversation_id out. Never make one up.\n\n\
         {limits}The first line of an answer says how the session was found: `existing` means that everything is still there; `new` and \
         `restarted` mean that no earlier variables exist, and no earlier files unless it says that they are kept, so define, import and \
         upload again what you need.\n\n\
         A run that is not over after {} goes on in the background: get_run follows it, cancel_run stops it. What code raises is a \
         result like any other; an answer flagged as an error means that Greenroom itself could not do it, and says what to do.",
        span(config.patience),
    )
}
