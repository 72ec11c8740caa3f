//! containerd's options for the runtime handler: which configuration counts.
//!
//! `[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.joey.options]`
//! reaches the shim as `runtimeoptions.v1.Options`: either `ConfigPath`, or the
//! table itself as TOML.

use std::path::Path;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{Message, UnknownValueRef};

use crate::config::{Config, Mode};
use crate::error::{Error, Result};

/// Name of the message.
const TYPE: &str = "runtimeoptions.v1.Options";
const CONFIG_PATH: u32 = 2;
const CONFIG_BODY: u32 = 3;

/// The configuration that a request's options choose.
///
/// # Errors
/// When it cannot be read or is wrong.
pub fn config(options: Option<&Any>) -> Result<Config> {
    let (path, body) = match options {
        Some(any) if any.type_url.rsplit('/').next() == Some(TYPE) => parse(&any.value)?,
        // Options of another runtime (runc's are containerd's default) say
        // nothing to us.
        _ => (String::new(), String::new()),
    };
    let config = if !path.is_empty() {
        Config::read(Path::new(&path))
    } else if !body.trim().is_empty() {
        Config::parse(&body, "in containerd's runtime options")
    } else {
        Config::load()
    };
    let mut config = config.map_err(Error::invalid)?;
    let program = std::env::args_os().next().unwrap_or_default();
    if let Some(mode) = Mode::of_program(&program) {
        config.mode = mode;
    }
    Ok(config)
}

/// The two fields of the message that count, without generated code for it.
fn parse(bytes: &[u8]) -> Result<(String, String)> {
    let message = Empty::parse_from_bytes(bytes).map_err(Error::invalid)?;
    let (mut path, mut body) = (String::new(), String::new());
    for (number, value) in message.special_fields.unknown_fields().iter() {
        let UnknownValueRef::LengthDelimited(bytes) = value else {
            continue;
        };
        let text = || {
            String::from_utf8(bytes.to_vec())
                .map_err(|_| Error::Invalid("containerd's runtime options are not UTF-8".into()))
        };
        match number {
            CONFIG_PATH => path = text()?,
            CONFIG_BODY => body = text()?,
            _ => {}
        }
    }
    Ok((path, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(field: u8, text: &str) -> Any {
        let mut value = vec![field << 3 | 2, u8::try_from(text.len()).unwrap()];
        value.extend_from_slice(text.as_bytes());
        Any {
            type_url: TYPE.into(),
            value,
            ..Default::default()
        }
    }

    #[test]
    fn a_path_or_a_table_may_be_given() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "vcpus = 2").unwrap();
        let by_path = config(Some(&options(2, file.path().to_str().unwrap()))).unwrap();
        assert_eq!(by_path.vcpus, 2);
        let by_table = config(Some(&options(3, "vcpus = 3"))).unwrap();
        assert_eq!(by_table.vcpus, 3);
        assert_eq!(by_table.mode, Mode::Vm);
        let on_host = config(Some(&options(3, "mode = \"runc\""))).unwrap();
        assert_eq!(on_host.mode, Mode::Runc);
    }

    #[test]
    fn wrong_options_are_named() {
        let error = config(Some(&options(2, "/none.toml"))).unwrap_err();
        assert!(error.to_string().contains("/none.toml"), "{error}");
        let error = config(Some(&options(3, "vcpu = 3"))).unwrap_err();
        assert!(error.to_string().contains("vcpu"), "{error}");
        let error = config(Some(&options(3, "mode = \"xen\""))).unwrap_err();
        assert!(error.to_string().contains("`vm` or `runc`"), "{error}");
        let garbage = Any {
            type_url: TYPE.into(),
            value: vec![0xff],
            ..Default::default()
        };
        config(Some(&garbage)).unwrap_err();
    }
}
