//! What to write into which file of a cgroup, derived from a spec without touching the system.

use oci_spec::runtime::{LinuxMemory, LinuxResources};

use super::{CgroupError, Version, v1, v2};

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
    pub value: Value,
    /// Another file and value for a kernel without the first.
    pub otherwise: Option<(String, String)>,
    /// A file with a count in use, and the value that must be above it.
    pub above: Option<(&'static str, u64)>,
    /// Whether a kernel without the file is fine.
    pub optional: bool,
    /// Whether the kernel may refuse it until a later setting, of which it depends, is written.
    pub may_wait: bool,
}

/// A value, or how it follows from what the cgroup has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// It is known.
    Text(String),
    /// The first word of what the file has stays, and this follows it.
    AfterFirst(String),
    /// The swap that together with the limit of memory, which stays, is this.
    SwapWithin(u64),
    /// The swap that together with this new limit of memory is what both are now.
    SwapBeside(u64),
}

impl Setting {
    pub(super) fn new(field: &str, controller: &str, file: &str, value: String) -> Self {
        Self {
            field: field.to_owned(),
            controller: controller.to_owned(),
            file: file.to_owned(),
            value: Value::Text(value),
            otherwise: None,
            above: None,
            optional: false,
            may_wait: false,
        }
    }

    /// The same for a kernel that may not have the file.
    pub(super) fn optional(self) -> Self {
        Self {
            optional: true,
            ..self
        }
    }

    /// The same for a value that depends on one that comes later.
    pub(super) fn may_wait(self) -> Self {
        Self {
            may_wait: true,
            ..self
        }
    }
}

/// All settings for the resources of a spec; device rules are apart.
pub(crate) fn settings(
    version: Version,
    resources: &LinuxResources,
) -> Result<Vec<Setting>, CgroupError> {
    match version {
        Version::V1 => v1::settings(resources),
        Version::V2 => v2::settings(resources),
    }
}

/// Limits of huge pages, in the files of either version that end with `suffix`.
pub(super) fn huge_pages(
    resources: &LinuxResources,
    suffix: &str,
    number: impl Fn(i64) -> String,
) -> Result<Vec<Setting>, CgroupError> {
    let field = "resources.hugepageLimits";
    let mut settings = Vec::new();
    for page in resources.hugepage_limits().iter().flatten() {
        let size = page.page_size();
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(CgroupError::Invalid {
                field,
                problem: format!("page size {size:?} is not a number and a unit, as in 2MB"),
            });
        }
        let limit = number(page.limit());
        let file = |kind: &str| format!("hugetlb.{size}.{kind}{suffix}");
        settings.push(Setting::new(field, "hugetlb", &file(""), limit.clone()));
        // Reservations count too, or a container could reserve what it may not use.
        settings.push(Setting::new(field, "hugetlb", &file("rsvd."), limit).optional());
    }
    Ok(settings)
}

/// Limits of RDMA devices, which both versions write alike.
pub(super) fn rdma(resources: &LinuxResources) -> Vec<Setting> {
    let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
    devices.sort_by_key(|(device, _)| *device);
    devices
        .into_iter()
        .map(|(device, limits)| {
            let mut line = device.clone();
            for (key, value) in [
                ("hca_handle", limits.hca_handles()),
                ("hca_object", limits.hca_objects()),
            ] {
                if let Some(value) = value {
                    line.push_str(&format!(" {key}={value}"));
                }
            }
            Setting::new("resources.rdma", "rdma", "rdma.max", line)
        })
        .collect()
}

/// Has the first of the `settings` for memory refused when `file` counts more in use than the new
/// limits allow, if the spec wants that looked at.
pub(super) fn check_usage(settings: &mut [Setting], memory: &LinuxMemory, file: &'static str) {
    let limits = [memory.limit(), memory.swap()];
    let least = limits
        .into_iter()
        .flatten()
        .filter(|&limit| limit > 0)
        .min();
    if memory.check_before_update() == Some(true)
        && let (Some(least), Some(first)) = (least, settings.first_mut())
    {
        first.above = Some((file, least as u64));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxHugepageLimitBuilder, LinuxRdmaBuilder};

    /// The files and known values of settings.
    pub(in crate::cgroup) fn lines(settings: &[Setting]) -> Vec<(&str, &str)> {
        settings
            .iter()
            .map(|setting| match &setting.value {
                Value::Text(text) => (setting.file.as_str(), text.as_str()),
                other => panic!("{}: {other:?}", setting.file),
            })
            .collect()
    }

    #[test]
    fn reserved_huge_pages_are_limited_too() {
        let mut resources = LinuxResources::default();
        let page = LinuxHugepageLimitBuilder::default()
            .page_size("2MB")
            .limit(4096)
            .build()
            .unwrap();
        resources.set_hugepage_limits(Some(vec![page]));
        assert_eq!(
            lines(&settings(Version::V2, &resources).unwrap()),
            [
                ("hugetlb.2MB.max", "4096"),
                ("hugetlb.2MB.rsvd.max", "4096")
            ]
        );
        assert_eq!(
            lines(&settings(Version::V1, &resources).unwrap()),
            [
                ("hugetlb.2MB.limit_in_bytes", "4096"),
                ("hugetlb.2MB.rsvd.limit_in_bytes", "4096")
            ]
        );
        for size in ["", "../2MB"] {
            let page = LinuxHugepageLimitBuilder::default()
                .page_size(size)
                .build()
                .unwrap();
            resources.set_hugepage_limits(Some(vec![page]));
            assert!(settings(Version::V2, &resources).is_err(), "{size}");
        }
    }

    #[test]
    fn rdma_limits_name_their_device() {
        let mut resources = LinuxResources::default();
        let limits = LinuxRdmaBuilder::default()
            .hca_handles(2u32)
            .hca_objects(2000u32)
            .build()
            .unwrap();
        resources.set_rdma(Some([("mlx5_1".to_owned(), limits)].into()));
        for version in [Version::V1, Version::V2] {
            assert_eq!(
                lines(&settings(version, &resources).unwrap()),
                [("rdma.max", "mlx5_1 hca_handle=2 hca_object=2000")]
            );
        }
    }
}
