//! Writing settings into the files of a cgroup.

use std::io::ErrorKind;

use super::setting::Value;
use super::{Cgroup, CgroupError, Directory, Setting};

/// A setting whose value and directory are known.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) setting: &'a Setting,
    directory: &'a Directory,
    pub(super) text: String,
}

impl Cgroup {
    /// Writes the settings in their order.
    pub(crate) fn apply(&self, settings: &[Setting]) -> Result<(), CgroupError> {
        let known = self.know(settings)?;
        #[cfg(feature = "systemd")]
        if let Some(scope) = &self.scope {
            // First: systemd writes some of the files itself, in its own units.
            scope.set_resources(self.version, &known, |file| self.read_of("cpu", file))?;
        }
        let mut waiting: Vec<(&Known<'_>, CgroupError)> = Vec::new();
        for one in &known {
            match one.write() {
                Err(error) if one.setting.may_wait && error.is_refused() => {
                    waiting.push((one, error));
                    continue;
                }
                other => other?,
            }
            if !one.setting.may_wait {
                for (one, _) in waiting.drain(..) {
                    one.write()?;
                }
            }
        }
        waiting
            .into_iter()
            .next()
            .map_or(Ok(()), |(_, error)| Err(error))
    }

    #[cfg(feature = "systemd")]
    fn read_of(&self, controller: &str, file: &str) -> Option<String> {
        self.of(controller)?.read(file).ok()
    }

    /// Finds out all values before the first is written, because some follow from others that
    /// are there.
    fn know<'a>(&'a self, settings: &'a [Setting]) -> Result<Vec<Known<'a>>, CgroupError> {
        let mut known = Vec::new();
        for setting in settings {
            let Some(directory) = self.of(&setting.controller) else {
                if setting.optional || setting.is_no_limit() {
                    continue;
                }
                return Err(self.no_controller(setting));
            };
            setting.check(directory)?;
            if let Some(text) = setting.text(directory)? {
                known.push(Known {
                    setting,
                    directory,
                    text,
                });
            }
        }
        Ok(known)
    }

    fn no_controller(&self, setting: &Setting) -> CgroupError {
        setting.no_controller(&self.directories[0])
    }
}

impl Setting {
    fn is_no_limit(&self) -> bool {
        matches!(&self.value, Value::Text(text) if text == "max" || text == "-1")
    }

    fn no_controller(&self, directory: &Directory) -> CgroupError {
        CgroupError::NoController {
            setting: self.field.clone(),
            controller: self.controller.clone(),
            path: directory.path().to_owned(),
        }
    }

    /// Refuses a limit that is not above what is in use. Without the count there is nothing to
    /// compare.
    fn check(&self, directory: &Directory) -> Result<(), CgroupError> {
        let Some((file, limit)) = self.above else {
            return Ok(());
        };
        let used = directory
            .read(file)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        match used {
            Some(used) if used >= limit => Err(CgroupError::Invalid {
                field: "resources.memory.limit",
                problem: format!("{limit} is below the {used} bytes in use"),
            }),
            _ => Ok(()),
        }
    }

    /// The value; `None` when there is nothing to write.
    fn text(&self, directory: &Directory) -> Result<Option<String>, CgroupError> {
        let number = |file: &str| -> Option<u64> { directory.read(file).ok()?.trim().parse().ok() };
        let invalid = |problem: String| CgroupError::Invalid {
            field: "resources.memory.swap",
            problem,
        };
        match &self.value {
            Value::Text(text) => Ok(Some(text.clone())),
            Value::AfterFirst(rest) => {
                let now = directory.read(&self.file).unwrap_or_default();
                let first = now.split_whitespace().next().unwrap_or("max");
                Ok(Some(format!("{first} {rest}")))
            }
            Value::SwapWithin(both) => match number("memory.max") {
                Some(memory) if *both >= memory => Ok(Some((both - memory).to_string())),
                Some(memory) => Err(invalid(format!(
                    "{both} counts memory and swap together and must not be below the limit of \
                     memory, {memory}"
                ))),
                None => Err(invalid(format!(
                    "{both} counts memory and swap together, so it needs a limit of memory; give \
                     one in resources.memory.limit"
                ))),
            },
            Value::SwapBeside(limit) => match (number("memory.max"), number("memory.swap.max")) {
                // No swap stays no swap, and no limit none.
                (_, None | Some(0)) | (None, _) => Ok(None),
                (Some(memory), Some(swap)) if memory + swap >= *limit => {
                    Ok(Some((memory + swap - limit).to_string()))
                }
                (Some(memory), Some(swap)) => Err(invalid(format!(
                    "the limit of memory and swap together, {}, is below the new limit of memory, \
                     {limit}; give a higher one too",
                    memory + swap
                ))),
            },
        }
    }
}

impl Known<'_> {
    fn write(&self) -> Result<(), CgroupError> {
        let setting = self.setting;
        let mut result = self.directory.write(&setting.file, &self.text);
        if is_missing(&result)
            && let Some((file, value)) = &setting.otherwise
        {
            result = self.directory.write(file, value);
        }
        // "No limit" is what a cgroup without the controller has; swap may be compiled out, and
        // then there is none.
        let nothing_missed = setting.optional
            || setting.is_no_limit()
            || (self.text == "0" && setting.file == "memory.swap.max");
        match &result {
            Err(_) if is_missing(&result) && nothing_missed => Ok(()),
            Err(_) if is_missing(&result) => Err(setting.no_controller(self.directory)),
            Err(CgroupError::File { source, .. })
                if source.kind() == ErrorKind::ResourceBusy && setting.controller == "memory" =>
            {
                Err(CgroupError::Invalid {
                    field: "resources.memory.limit",
                    problem: format!("{} is below what is in use and cannot be freed", self.text),
                })
            }
            _ => result,
        }
    }
}

fn is_missing(result: &Result<(), CgroupError>) -> bool {
    matches!(result, Err(CgroupError::File { source, .. })
        if source.kind() == ErrorKind::NotFound)
}
