//! Limits of memory and swap.

use oci_spec::runtime::LinuxMemory;

use super::{CgroupError, Setting, number};

/// The settings for `resources.memory`. What only version 1 knows (kernel memory, swappiness,
/// disabling the OOM killer) has no file here and is left out, as other engines do.
pub(super) fn settings(memory: &LinuxMemory) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    let limit = memory.limit().filter(|&limit| limit != 0);
    if let Some(swap) = memory.swap().filter(|&swap| swap != 0) {
        settings.push(Setting::new(
            "resources.memory.swap",
            "memory",
            "memory.swap.max",
            swap_alone(swap, limit)?,
        ));
    }
    if let Some(limit) = limit {
        let mut setting = Setting::new(
            "resources.memory.limit",
            "memory",
            "memory.max",
            number(limit),
        );
        if memory.check_before_update() == Some(true) && limit > 0 {
            setting.not_below = Some(("memory.current", limit as u64));
        }
        settings.push(setting);
    }
    if let Some(reservation) = memory.reservation().filter(|&value| value != 0) {
        settings.push(Setting::new(
            "resources.memory.reservation",
            "memory",
            "memory.low",
            number(reservation),
        ));
    }
    Ok(settings)
}

/// A spec counts memory and swap together, the kernel's file swap alone.
fn swap_alone(both: i64, memory: Option<i64>) -> Result<String, CgroupError> {
    let invalid = |problem: String| CgroupError::Invalid {
        field: "resources.memory.swap",
        problem,
    };
    match (both, memory) {
        (..0, _) => Ok("max".to_owned()),
        (_, None | Some(..0)) => Err(invalid(format!(
            "{both} counts memory and swap together, so it needs resources.memory.limit"
        ))),
        (both, Some(memory)) if both < memory => Err(invalid(format!(
            "{both} counts memory and swap together and must not be below the limit of memory, \
             {memory}"
        ))),
        (both, Some(memory)) => Ok((both - memory).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxMemoryBuilder;

    fn values(memory: LinuxMemory) -> Vec<(String, String)> {
        settings(&memory)
            .unwrap()
            .into_iter()
            .map(|setting| (setting.file, setting.value))
            .collect()
    }

    #[test]
    fn swap_is_counted_without_memory() {
        let memory = LinuxMemoryBuilder::default()
            .limit(100)
            .swap(150)
            .build()
            .unwrap();
        assert_eq!(
            values(memory),
            [
                ("memory.swap.max".to_owned(), "50".to_owned()),
                ("memory.max".to_owned(), "100".to_owned())
            ]
        );
    }

    #[test]
    fn swap_below_memory_is_refused() {
        let memory = LinuxMemoryBuilder::default()
            .limit(100)
            .swap(99)
            .build()
            .unwrap();
        assert!(settings(&memory).is_err());
        let memory = LinuxMemoryBuilder::default().swap(99).build().unwrap();
        assert!(settings(&memory).is_err());
    }

    #[test]
    fn minus_one_is_no_limit() {
        let memory = LinuxMemoryBuilder::default()
            .limit(-1)
            .swap(-1)
            .build()
            .unwrap();
        assert!(values(memory).iter().all(|(_, value)| value == "max"));
    }
}
