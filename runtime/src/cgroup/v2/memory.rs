//! Limits of memory and swap.

use oci_spec::runtime::LinuxMemory;

use super::{CgroupError, Setting, number};
use crate::cgroup::setting::{Value, check_usage};

/// The settings for `resources.memory`. What only version 1 knows (kernel memory, swappiness,
/// disabling the OOM killer) has no file here and is left out, as other engines do.
pub(super) fn settings(memory: &LinuxMemory) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    let new = |field, file, value| Setting::new(field, "memory", file, value);
    let limit = memory.limit().filter(|&limit| limit != 0);
    let both = memory.swap().filter(|&both| both != 0);
    // Before the limit of memory, from which it may follow.
    if let Some(value) = swap_alone(both, limit)? {
        let mut swap = new("resources.memory.swap", "memory.swap.max", String::new());
        swap.value = value;
        settings.push(swap);
    }
    if let Some(limit) = limit {
        let limit = number(limit);
        settings.push(new("resources.memory.limit", "memory.max", limit));
    }
    if let Some(reservation) = memory.reservation().filter(|&value| value != 0) {
        let low = number(reservation);
        settings.push(new("resources.memory.reservation", "memory.low", low));
    }
    check_usage(&mut settings, memory, "memory.current");
    Ok(settings)
}

/// A spec counts memory and swap together, the kernel's file swap alone.
fn swap_alone(both: Option<i64>, memory: Option<i64>) -> Result<Option<Value>, CgroupError> {
    let text = |text: String| Ok(Some(Value::Text(text)));
    match (both, memory) {
        (Some(..0), _) => text("max".to_owned()),
        (Some(both), Some(..0)) => Err(CgroupError::Invalid {
            field: "resources.memory.swap",
            problem: format!(
                "{both} counts memory and swap together, so it needs a limit of memory; give one \
                 in resources.memory.limit"
            ),
        }),
        (Some(both), Some(memory)) if both < memory => Err(CgroupError::Invalid {
            field: "resources.memory.swap",
            problem: format!(
                "{both} counts memory and swap together and must not be below the limit of \
                 memory, {memory}"
            ),
        }),
        (Some(both), Some(memory)) => text((both - memory).to_string()),
        (Some(both), None) => Ok(Some(Value::SwapWithin(both as u64))),
        (None, Some(memory @ 0..)) => Ok(Some(Value::SwapBeside(memory as u64))),
        (None, _) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::setting::tests::lines;
    use oci_spec::runtime::LinuxMemoryBuilder;

    fn memory() -> LinuxMemoryBuilder {
        LinuxMemoryBuilder::default()
    }

    #[test]
    fn swap_is_counted_without_memory() {
        let memory = memory().limit(100).swap(150).build().unwrap();
        assert_eq!(
            lines(&settings(&memory).unwrap()),
            [("memory.swap.max", "50"), ("memory.max", "100")]
        );
    }

    #[test]
    fn swap_below_memory_is_refused() {
        for limit in [100, -1] {
            let memory = memory().limit(limit).swap(99).build().unwrap();
            assert!(settings(&memory).is_err(), "{limit}");
        }
    }

    #[test]
    fn one_of_both_follows_from_what_is_there() {
        let swap = settings(&memory().swap(99).build().unwrap()).unwrap();
        assert_eq!(swap.len(), 1);
        assert_eq!(swap[0].value, Value::SwapWithin(99));
        let limit = settings(&memory().limit(100).build().unwrap()).unwrap();
        assert_eq!(limit[0].value, Value::SwapBeside(100));
        assert_eq!(lines(&limit[1..]), [("memory.max", "100")]);
    }

    #[test]
    fn minus_one_is_no_limit() {
        let both = memory().limit(-1).swap(-1).build().unwrap();
        assert_eq!(
            lines(&settings(&both).unwrap()),
            [("memory.swap.max", "max"), ("memory.max", "max")]
        );
        let limit = memory().limit(-1).build().unwrap();
        assert_eq!(lines(&settings(&limit).unwrap()), [("memory.max", "max")]);
    }

    #[test]
    fn the_lower_of_both_is_checked_first() {
        let memory = memory()
            .limit(100)
            .swap(150)
            .check_before_update(true)
            .build()
            .unwrap();
        let settings = settings(&memory).unwrap();
        assert_eq!(settings[0].above, Some(("memory.current", 100)));
        assert_eq!(settings[1].above, None);
    }
}
