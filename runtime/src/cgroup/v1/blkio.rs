//! Limits and weights of block devices.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::Setting;

/// The settings for `resources.blockIO`.
pub(super) fn settings(block: &LinuxBlockIo) -> Vec<Setting> {
    let new = |field: &str, file: &str, value: String| {
        Setting::new(&format!("resources.blockIO.{field}"), "blkio", file, value)
    };
    // Weights are BFQ's; before Linux 5.0 CFQ had them under other names.
    let weight = |field: &str, file: &str, value: String| Setting {
        otherwise: Some((format!("blkio.{file}"), value.clone())),
        ..new(field, &format!("blkio.bfq.{file}"), value)
    };
    let given = |weight: Option<u16>| weight.filter(|&weight| weight != 0);
    let mut settings = Vec::new();
    if let Some(value) = given(block.weight()) {
        settings.push(weight("weight", "weight", value.to_string()));
    }
    if let Some(value) = given(block.leaf_weight()) {
        let leaf = new("leafWeight", "blkio.leaf_weight", value.to_string());
        settings.push(leaf.optional());
    }
    for device in block.weight_device().iter().flatten() {
        let line = |value: u16| format!("{}:{} {value}", device.major(), device.minor());
        if let Some(value) = given(device.weight()) {
            settings.push(weight("weightDevice", "weight_device", line(value)));
        }
        if let Some(value) = given(device.leaf_weight()) {
            let leaf = new("weightDevice", "blkio.leaf_weight_device", line(value));
            settings.push(leaf.optional());
        }
    }
    let mut throttle = |field: &str, file: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        settings.extend(devices.iter().flatten().map(|device| {
            // 0 takes a limit away here too.
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            new(field, &format!("blkio.throttle.{file}"), line)
        }));
    };
    throttle(
        "throttleReadBpsDevice",
        "read_bps_device",
        block.throttle_read_bps_device(),
    );
    throttle(
        "throttleWriteBpsDevice",
        "write_bps_device",
        block.throttle_write_bps_device(),
    );
    throttle(
        "throttleReadIOPSDevice",
        "read_iops_device",
        block.throttle_read_iops_device(),
    );
    throttle(
        "throttleWriteIOPSDevice",
        "write_iops_device",
        block.throttle_write_iops_device(),
    );
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::setting::tests::lines;
    use oci_spec::runtime::{LinuxBlockIoBuilder, LinuxThrottleDeviceBuilder};

    #[test]
    fn every_value_has_its_file() {
        let device = |rate: u64| {
            let device = LinuxThrottleDeviceBuilder::default().major(8).minor(16);
            vec![device.rate(rate).build().unwrap()]
        };
        let block = LinuxBlockIoBuilder::default()
            .weight(500u16)
            .leaf_weight(300u16)
            .throttle_read_bps_device(device(1))
            .throttle_write_bps_device(device(2))
            .throttle_read_iops_device(device(3))
            .throttle_write_iops_device(device(0))
            .build()
            .unwrap();
        let settings = settings(&block);
        assert_eq!(
            lines(&settings),
            [
                ("blkio.bfq.weight", "500"),
                ("blkio.leaf_weight", "300"),
                ("blkio.throttle.read_bps_device", "8:16 1"),
                ("blkio.throttle.write_bps_device", "8:16 2"),
                ("blkio.throttle.read_iops_device", "8:16 3"),
                ("blkio.throttle.write_iops_device", "8:16 0"),
            ]
        );
        let older = Some(("blkio.weight".to_owned(), "500".to_owned()));
        assert_eq!(settings[0].otherwise, older);
    }
}
