//! What to write into which file of a cgroup, derived from a spec without touching the system.

use oci_spec::runtime::LinuxResources;

use super::{CgroupError, cpu, cpuset, io, memory, pids};

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The field of the spec that asks for it.
    pub field: String,
    /// The controller that has the file.
    pub controller: String,
    /// The file.
    pub file: String,
    /// The value.
    pub value: String,
    /// Another file and value for a kernel without the first.
    pub otherwise: Option<(String, String)>,
    /// A file with a count in use, and the value that this must not be above.
    pub not_below: Option<(&'static str, u64)>,
    /// Whether a kernel without the file is fine.
    pub optional: bool,
    /// Whether the first word of what the file has stays, and the value is what follows it.
    pub after_first: bool,
}

impl Setting {
    pub(super) fn new(field: &str, controller: &str, file: &str, value: String) -> Self {
        Self {
            field: field.to_owned(),
            controller: controller.to_owned(),
            file: file.to_owned(),
            value,
            otherwise: None,
            not_below: None,
            optional: false,
            after_first: false,
        }
    }
}

/// A number of a spec as the kernel's files want it: below 0 is no limit.
pub(crate) fn number(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// All settings for the resources of a spec; device rules are apart.
pub(crate) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    if let Some(cpu) = resources.cpu() {
        settings.extend(cpuset::settings(cpu));
        settings.extend(cpu::settings(cpu));
    }
    if let Some(memory) = resources.memory() {
        settings.extend(memory::settings(memory)?);
    }
    if let Some(pids) = resources.pids() {
        settings.extend(pids::settings(pids));
    }
    if let Some(block) = resources.block_io() {
        settings.extend(io::settings(block));
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let size = page.page_size();
        if !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(CgroupError::Invalid {
                field: "resources.hugepageLimits",
                problem: format!("page size {size:?} is not a number and a unit, as in 2MB"),
            });
        }
        let limit = number(page.limit());
        settings.push(Setting::new(
            "resources.hugepageLimits",
            "hugetlb",
            &format!("hugetlb.{size}.max"),
            limit.clone(),
        ));
        // Reservations count too, or a container could reserve what it may not use.
        let mut reserved = Setting::new(
            "resources.hugepageLimits",
            "hugetlb",
            &format!("hugetlb.{size}.rsvd.max"),
            limit,
        );
        reserved.optional = true;
        settings.push(reserved);
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        let mut line = device.clone();
        for (key, value) in [
            ("hca_handle", limits.hca_handles()),
            ("hca_object", limits.hca_objects()),
        ] {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        settings.push(Setting::new("resources.rdma", "rdma", "rdma.max", line));
    }
    settings.extend(unified(resources)?);
    Ok(settings)
}

/// Files named in the spec itself; they come last and so win. Sorted, because a map has no order.
fn unified(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    let mut files: Vec<_> = resources.unified().iter().flatten().collect();
    files.sort();
    files
        .into_iter()
        .map(|(file, value)| match file.split_once('.') {
            Some((controller, rest))
                if !controller.is_empty() && !rest.is_empty() && !file.contains('/') =>
            {
                Ok(Setting::new(
                    &format!("resources.unified.{file}"),
                    controller,
                    file,
                    value.clone(),
                ))
            }
            _ => Err(CgroupError::Invalid {
                field: "resources.unified",
                problem: format!("{file:?} is not a file of a cgroup, as in memory.high"),
            }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_outside_the_cgroup_is_refused() {
        for file in ["../memory.max", "memory", "a/b.c", ".x"] {
            let mut resources = LinuxResources::default();
            resources.set_unified(Some([(file.to_owned(), "1".to_owned())].into()));
            assert!(settings(&resources).is_err(), "{file}");
        }
    }

    #[test]
    fn files_named_in_the_spec_come_last() {
        let mut resources = LinuxResources::default();
        let mut pids = oci_spec::runtime::LinuxPids::default();
        pids.set_limit(10);
        resources.set_pids(Some(pids));
        resources.set_unified(Some([("pids.max".to_owned(), "20".to_owned())].into()));
        let values: Vec<_> = settings(&resources)
            .unwrap()
            .into_iter()
            .map(|setting| setting.value)
            .collect();
        assert_eq!(values, ["10", "20"]);
    }
}
