//! The class and the priorities of network traffic.

use oci_spec::runtime::LinuxNetwork;

use super::{CgroupError, Setting};

/// The settings for `resources.network`.
pub(super) fn settings(network: &LinuxNetwork) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    if let Some(class) = network.class_id().filter(|&class| class != 0) {
        let field = "resources.network.classID";
        let class = class.to_string();
        settings.push(Setting::new(field, "net_cls", "net_cls.classid", class));
    }
    for priority in network.priorities().iter().flatten() {
        let name = priority.name();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(CgroupError::Invalid {
                field: "resources.network.priorities",
                problem: format!("{name:?} is not the name of a network interface"),
            });
        }
        settings.push(Setting::new(
            "resources.network.priorities",
            "net_prio",
            "net_prio.ifpriomap",
            format!("{name} {}", priority.priority()),
        ));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::setting::tests::lines;
    use oci_spec::runtime::{LinuxInterfacePriorityBuilder, LinuxNetworkBuilder};

    fn priority(name: &str) -> LinuxNetwork {
        let priority = LinuxInterfacePriorityBuilder::default()
            .name(name)
            .priority(5u32)
            .build()
            .unwrap();
        LinuxNetworkBuilder::default()
            .class_id(0x10_0001u32)
            .priorities(vec![priority])
            .build()
            .unwrap()
    }

    #[test]
    fn every_value_has_its_file() {
        assert_eq!(
            lines(&settings(&priority("eth0")).unwrap()),
            [
                ("net_cls.classid", "1048577"),
                ("net_prio.ifpriomap", "eth0 5")
            ]
        );
        assert!(settings(&priority("eth0 9\nlo")).is_err());
    }
}
