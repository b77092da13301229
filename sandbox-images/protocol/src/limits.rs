//! Bounds that both sides keep. A peer that breaks one is refused, never followed.

/// Code of one run, in bytes.
pub const CODE_BYTES: usize = 1 << 20;
/// A JSON body in either direction, in bytes: code, escaped at its worst, and some room.
pub const JSON_BYTES: usize = 8 << 20;
/// One line of an event stream, in bytes: one image in base64 and some room.
pub const EVENT_BYTES: usize = 2 << 20;
/// A run's id, in bytes: letters, digits, `-` and `_`, since files are named after it.
pub const RUN_ID_BYTES: usize = 64;
/// The longest `timeout_ms` of a run: a week, more than any lifetime.
pub const RUN_TIMEOUT_MS: u64 = 7 * 24 * 3600 * 1000;
/// The longest `wait` of a long poll or a follower, in seconds; a longer wish is cut to it.
pub const WAIT_SECS: u64 = 600;
/// Kernels of one sandbox.
pub const KERNELS: usize = 12;
/// Runs of one kernel that may wait.
pub const QUEUED_RUNS: usize = 16;
/// Finished runs that are kept for replay …
pub const KEPT_RUNS: usize = 64;
/// … and the bytes of events that they may hold together.
pub const KEPT_BYTES: usize = 16 << 20;
/// Bytes of the head of each output stream that a run keeps …
pub const OUTPUT_HEAD: usize = 64 << 10;
/// … and of its tail. Between them output is counted and spilled.
pub const OUTPUT_TAIL: usize = 64 << 10;
/// Bytes of the head of what an image's own program writes …
pub const LOG_HEAD: usize = 16 << 10;
/// … and of its tail.
pub const LOG_TAIL: usize = 64 << 10;
/// Bytes of that tail which outlive the sandbox.
pub const LAST_WORDS: usize = 8 << 10;
/// Variables that a sandbox is given …
pub const ENV_NAMES: usize = 256;
/// … and the bytes of their names and values together.
pub const ENV_BYTES: usize = 256 << 10;
/// Images that one run may send.
pub const IMAGES: usize = 4;
/// Bytes of one image as sent, before base64: hosts cut whole answers near 1 MB.
pub const IMAGE_BYTES: usize = 300 << 10;
/// Longest side of an image as sent, in pixels.
pub const IMAGE_PIXELS: u32 = 1568;
/// Packages that an image lists …
pub const PACKAGES: usize = 4096;
/// … in a file of so many bytes.
pub const PACKAGES_BYTES: u64 = 4 << 20;
/// A path, in bytes.
pub const PATH_BYTES: usize = 1024;
/// One segment of a path, in bytes.
pub const NAME_BYTES: usize = 255;
/// Entries of one listing; fewer where their names are so long that [`JSON_BYTES`] is met first.
pub const LIST_ENTRIES: usize = 10_000;
/// Entries of an archive, packed or unpacked.
pub const ARCHIVE_ENTRIES: u64 = 20_000;
/// The mark of an archive, in bytes: letters, digits and `-`.
pub const MARK_BYTES: usize = 64;
/// A deletion works for this long at most, in seconds; what it has not deleted by then stays.
pub const DELETE_SECS: u64 = 10;
/// Changed files that one outcome names.
pub const CHANGED_FILES: usize = 50;
/// Open requests on one connection.
pub const STREAMS: u32 = 64;
/// HTTP/2 window of one stream: a stalled reader holds back this much and no more.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// HTTP/2 window of one connection.
pub const CONNECTION_WINDOW: u32 = 1 << 20;
/// Windows of the second connection, which carries files and tunnels only: the bandwidth of a long pipe.
pub const BULK_STREAM_WINDOW: u32 = 8 << 20;
/// See [`BULK_STREAM_WINDOW`].
pub const BULK_CONNECTION_WINDOW: u32 = 16 << 20;
/// A ping is sent this often, in seconds …
pub const PING_SECS: u64 = 10;
/// … and its answer is awaited this long.
pub const PING_TIMEOUT_SECS: u64 = 20;
