//! CPU time and memory of processes, from `/proc`.
use std::{fs, time::Duration};

/// What `/proc/<pid>/stat` counts in; Linux has used this value everywhere for decades.
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of a process so far; `None` where it is gone.
pub fn time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces, so count from its end.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Resident memory in bytes.
pub fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_used_time_and_memory() {
        let pid = std::process::id();
        assert!(super::time(pid).is_some());
        assert!(super::resident(pid).unwrap() > 100_000);
        assert!(super::time(u32::MAX).is_none());
    }
}
