//! Flags as programs in Go take them, runc among them: a name has one dash or two before it, a flag
//! without a value may be followed by `=true` or `=false`, and of a repeated one the last counts.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::{Arg, Command};

/// The arguments, program first, in the form that `command` takes.
pub(super) fn plain(command: &Command, args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut level = command;
    let mut args = args.into_iter();
    let mut plain: Vec<OsString> = args.by_ref().take(1).collect();
    // Where the flags of this level begin.
    let mut begin = plain.len();
    while let Some(arg) = args.next() {
        if arg == "--" {
            plain.push(arg);
            break;
        }
        if arg == "-" || !arg.as_bytes().starts_with(b"-") {
            let verb = arg.to_str().and_then(|name| level.find_subcommand(name));
            plain.push(arg);
            if let Some(verb) = verb {
                level = verb;
                begin = plain.len();
            } else if level.get_positionals().any(Arg::is_trailing_var_arg_set) {
                // What follows belongs to a command in the container.
                break;
            }
            continue;
        }
        let (name, value) = parts(&arg);
        let Some(flag) = level.get_arguments().find(|flag| is_called(flag, name)) else {
            plain.push(arg);
            continue;
        };
        let mut known = match (flag.get_long(), flag.get_short()) {
            (Some(long), _) => OsString::from(format!("--{long}")),
            (None, Some(short)) => OsString::from(format!("-{short}")),
            (None, None) => continue,
        };
        if flag.get_action().takes_values() {
            // Whatever comes next is the value, with dashes or without.
            let next = value.map(OsStr::to_owned).or_else(|| args.next());
            if let Some(value) = next {
                known.push("=");
                known.push(value);
            }
            plain.push(known);
            continue;
        }
        match value.map(|value| (truth(value), value)) {
            None | Some((Some(true), _)) => plain.push(known),
            Some((Some(false), _)) => {
                let earlier = plain.split_off(begin);
                plain.extend(earlier.into_iter().filter(|arg| *arg != known));
            }
            // To be refused.
            Some((None, value)) => {
                known.push("=");
                known.push(value);
                plain.push(known);
            }
        }
    }
    plain.extend(args);
    plain
}

/// The name of a flag without dashes, and its value.
fn parts(arg: &OsStr) -> (&[u8], Option<&OsStr>) {
    let bytes = arg.as_bytes();
    let bytes = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let bytes = bytes.strip_prefix(b"-").unwrap_or(bytes);
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
        None => (bytes, None),
    }
}

fn is_called(flag: &Arg, name: &[u8]) -> bool {
    flag.get_long().is_some_and(|long| long.as_bytes() == name)
        || flag.get_short().is_some_and(|short| [short as u8] == *name)
}

/// What Go takes for a truth value.
fn truth(value: &OsStr) -> Option<bool> {
    match value.to_str()? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CommandLine, Verb};
    use super::*;
    use clap::{CommandFactory, Parser};

    fn parse(line: &str) -> Result<CommandLine, clap::Error> {
        let args = line.split(' ').map(OsString::from);
        CommandLine::try_parse_from(plain(&CommandLine::command(), args))
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let line = parse("joey -root=/a -debug --log-format json -log -x list -format json -q");
        let line = line.unwrap();
        assert_eq!(line.global.root.unwrap().to_str(), Some("/a"));
        assert!(line.global.debug);
        assert_eq!(line.global.log.unwrap().to_str(), Some("-x"));
        let Verb::List(list) = line.verb else {
            panic!("{:?}", line.verb);
        };
        assert_eq!(format!("{list:?}"), "List { format: Json, quiet: true }");
    }

    #[test]
    fn flags_without_a_value_take_truth_values() {
        for (flags, expected) in [
            ("", false),
            ("--force=true ", true),
            ("-force=1 ", true),
            ("-f=T ", true),
            ("--f ", true),
            ("--force=false ", false),
            ("--force --force=false ", false),
            ("--force=0 --force ", true),
            ("--force --force ", true),
        ] {
            let line = parse(&format!("joey --debug delete {flags}ID")).unwrap();
            assert!(line.global.debug);
            let Verb::Delete(delete) = line.verb else {
                panic!("{:?}", line.verb);
            };
            let expected = format!("Delete {{ force: {expected}, id: \"ID\" }}");
            assert_eq!(format!("{delete:?}"), expected, "{flags}");
        }
        let error = parse("joey delete --force=maybe ID").unwrap_err();
        assert!(error.to_string().contains("maybe"), "{error}");
    }

    #[test]
    fn of_a_repeated_flag_the_last_counts() {
        let line = parse("joey --root /a --root /b list").unwrap();
        assert_eq!(line.global.root.unwrap().to_str(), Some("/b"));
        let line = parse("joey exec -e A=1 --env B=2 ID true").unwrap();
        let text = format!("{:?}", line.verb);
        assert!(text.contains(r#"env: ["A=1", "B=2"]"#), "{text}");
    }

    #[test]
    fn arguments_of_a_command_stay_as_they_are() {
        let command = "joey exec -tty=false ID tool -tty=true --tty=false -user 5";
        let args = plain(
            &CommandLine::command(),
            command.split(' ').map(OsString::from),
        );
        let expected = "joey exec ID tool -tty=true --tty=false -user 5";
        assert_eq!(args.join(OsStr::new(" ")), expected);
    }
}
