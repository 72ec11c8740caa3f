//! Limits and weights of block devices.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::Setting;

/// The settings for `resources.blockIO`.
pub(super) fn settings(block: &LinuxBlockIo) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(weight) = block.weight().filter(|&weight| weight != 0) {
        settings.push(weight_setting(
            "resources.blockIO.weight",
            weight,
            |weight| format!("default {weight}"),
        ));
    }
    for device in block.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|&weight| weight != 0) {
            settings.push(weight_setting(
                "resources.blockIO.weightDevice",
                weight,
                |weight| format!("{}:{} {weight}", device.major(), device.minor()),
            ));
        }
    }
    let mut throttle = |field: &str, key: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            // 0 takes a limit away.
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
            settings.push(Setting::new(field, "io", "io.max", line));
        }
    };
    throttle(
        "resources.blockIO.throttleReadBpsDevice",
        "rbps",
        block.throttle_read_bps_device(),
    );
    throttle(
        "resources.blockIO.throttleWriteBpsDevice",
        "wbps",
        block.throttle_write_bps_device(),
    );
    throttle(
        "resources.blockIO.throttleReadIOPSDevice",
        "riops",
        block.throttle_read_iops_device(),
    );
    throttle(
        "resources.blockIO.throttleWriteIOPSDevice",
        "wiops",
        block.throttle_write_iops_device(),
    );
    settings
}

/// A weight goes to the BFQ scheduler as it is where that is in use, else to the kernel's cost
/// model, whose range is 1 to 10000 where a spec's is 10 to 1000.
fn weight_setting(field: &str, weight: u16, line: impl Fn(u64) -> String) -> Setting {
    let weight = u64::from(weight);
    let scaled = 1 + weight.saturating_sub(10) * 9999 / 990;
    let mut setting = Setting::new(field, "io", "io.bfq.weight", line(weight));
    setting.otherwise = Some(("io.weight".to_owned(), line(scaled.min(10_000))));
    setting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::setting::tests::lines;
    use oci_spec::runtime::{LinuxBlockIoBuilder, LinuxThrottleDeviceBuilder};

    #[test]
    fn a_rate_names_its_device_and_direction() {
        let device = LinuxThrottleDeviceBuilder::default()
            .major(8)
            .minor(16)
            .rate(1000u64)
            .build()
            .unwrap();
        let block = LinuxBlockIoBuilder::default()
            .throttle_write_bps_device(vec![device])
            .build()
            .unwrap();
        let settings = settings(&block);
        assert_eq!(lines(&settings), [("io.max", "8:16 wbps=1000")]);
    }

    #[test]
    fn weights_are_scaled_for_the_cost_model() {
        let block = LinuxBlockIoBuilder::default()
            .weight(1000u16)
            .build()
            .unwrap();
        let settings = settings(&block);
        assert_eq!(lines(&settings), [("io.bfq.weight", "default 1000")]);
        assert_eq!(
            settings[0].otherwise,
            Some(("io.weight".to_owned(), "default 10000".to_owned()))
        );
    }
}
