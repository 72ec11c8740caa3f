//! The guest's own processors and memory.

use std::fs;
use std::io;
use std::path::Path;

use protocol::guest::StatsResponse;

const CPUS: &str = "/sys/devices/system/cpu";

/// Brings processors online until there are `cpus`. The boot processor always is.
pub fn online_cpus(cpus: u32) -> io::Result<()> {
    for cpu in 1..cpus {
        let file = Path::new(CPUS).join(format!("cpu{cpu}/online"));
        let told = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("bring processor {cpu} online: {error}"),
            )
        };
        if fs::read(&file).map_err(told)?.starts_with(b"1") {
            continue;
        }
        fs::write(&file, "1").map_err(told)?;
    }
    Ok(())
}

/// Memory, processor time and processes of the whole guest.
pub fn guest_stats() -> io::Result<StatsResponse> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let cpu = fs::read_to_string("/sys/fs/cgroup/cpu.stat")?;
    let is_process = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
    };
    let processes = fs::read_dir("/proc")?.flatten().filter(is_process).count();
    Ok(StatsResponse {
        memory_total_bytes: field(&memory, "MemTotal:").saturating_mul(1024),
        memory_available_bytes: field(&memory, "MemAvailable:").saturating_mul(1024),
        cpu_usage_ns: field(&cpu, "usage_usec").saturating_mul(1000),
        processes: processes as u64,
        ..Default::default()
    })
}

/// The number in the line that starts with `name`; 0 without such a line.
fn field(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    let value = lines.find_map(|mut words| (words.next()? == name).then(|| words.next())?);
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotal:     8 kB\nMemTotalX: 9 kB\nMemAvailable:\t7 kB\n";
        assert_eq!(
            (field(text, "MemTotal:"), field(text, "MemAvailable:")),
            (8, 7)
        );
        assert_eq!((field(text, "Mem"), field("", "MemTotal:")), (0, 0));
    }
}
