//! Files that a spec names itself.

use oci_spec::runtime::LinuxResources;

use super::{CgroupError, Setting};

/// The settings for `resources.unified`; they come last and so win. Sorted, because a map has no
/// order. The kernel takes one line at a time.
pub(super) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    let mut files: Vec<_> = resources.unified().iter().flatten().collect();
    files.sort();
    let mut settings = Vec::new();
    for (file, value) in files {
        match file.split_once('.') {
            Some((controller, rest))
                if !controller.is_empty() && !rest.is_empty() && !file.contains('/') =>
            {
                let field = format!("resources.unified.{file}");
                settings.extend(
                    value
                        .trim_end_matches('\n')
                        .split('\n')
                        .map(|line| Setting::new(&field, controller, file, line.to_owned())),
                );
            }
            _ => {
                return Err(CgroupError::Invalid {
                    field: "resources.unified",
                    problem: format!("{file:?} is not a file of a cgroup, as in memory.high"),
                });
            }
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::setting::tests::lines;

    fn unified(file: &str, value: &str) -> LinuxResources {
        let mut resources = LinuxResources::default();
        resources.set_unified(Some([(file.to_owned(), value.to_owned())].into()));
        resources
    }

    #[test]
    fn a_file_outside_the_cgroup_is_refused() {
        for file in ["../memory.max", "memory", "a/b.c", ".x"] {
            assert!(settings(&unified(file, "1")).is_err(), "{file}");
        }
    }

    #[test]
    fn files_named_in_the_spec_come_last() {
        let mut resources = unified("pids.max", "20");
        let mut pids = oci_spec::runtime::LinuxPids::default();
        pids.set_limit(10);
        resources.set_pids(Some(pids));
        assert_eq!(
            lines(&super::super::settings(&resources).unwrap()),
            [("pids.max", "10"), ("pids.max", "20")]
        );
    }

    #[test]
    fn several_lines_are_written_one_by_one() {
        let resources = unified("io.max", "8:0 rbps=1\n8:16 rbps=2\n");
        assert_eq!(
            lines(&settings(&resources).unwrap()),
            [("io.max", "8:0 rbps=1"), ("io.max", "8:16 rbps=2")]
        );
        assert_eq!(
            lines(&settings(&unified("cpuset.cpus", "")).unwrap()),
            [("cpuset.cpus", "")]
        );
    }
}
