//! What a process has in memory.

use anyhow::{Context as _, Result};

/// Resident memory of a process in bytes.
///
/// # Errors
/// It has ended.
pub fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Ok(kib.context("VmRSS")?.trim().parse::<u64>()? << 10)
}
