//! Properties of the unit that a spec asks for in annotations: `org.systemd.property.NAME`, whose
//! value is in the text form of GVariant, for example `uint64 5` or `['a', 'b']`.

use std::collections::HashMap;

use super::wire::{Value, first_type};

const PREFIX: &str = "org.systemd.property.";

/// The properties that annotations ask for, sorted by name.
pub(crate) fn annotated_properties(
    annotations: &HashMap<String, String>,
) -> Result<Vec<(String, Value)>, (String, String)> {
    let mut properties = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let failed = |problem: String| (format!("annotations[{key}]"), problem);
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(failed(
                "is not the name of a property of systemd, which has letters only".to_owned(),
            ));
        }
        let value = parse(text).map_err(|problem| {
            failed(format!(
                "{text:?} is not a value in GVariant's text form ({problem}); write it as in \
                 'text', true, uint64 5 or ['a', 'b']"
            ))
        })?;
        properties.push(in_microseconds(name, value).map_err(failed)?);
    }
    properties.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(properties)
}

/// Unit files have times in seconds (`TimeoutStopSec`), the bus in microseconds
/// (`TimeoutStopUSec`); an annotation may use the name of the former.
fn in_microseconds(name: &str, value: Value) -> Result<(String, Value), String> {
    let stem = name
        .strip_suffix("Sec")
        .filter(|stem| stem.ends_with(|letter: char| letter.is_ascii_lowercase()));
    let Some(stem) = stem else {
        return Ok((name.to_owned(), value));
    };
    const SECOND: f64 = 1e6;
    let whole = |seconds: Option<u64>| seconds.and_then(|seconds| seconds.checked_mul(1_000_000));
    let microseconds = match &value {
        Value::Byte(seconds) => whole(Some((*seconds).into())),
        Value::U16(seconds) => whole(Some((*seconds).into())),
        Value::U32(seconds) => whole(Some((*seconds).into())),
        Value::U64(seconds) => whole(Some(*seconds)),
        Value::I16(seconds) => whole((*seconds).try_into().ok()),
        Value::I32(seconds) => whole((*seconds).try_into().ok()),
        Value::I64(seconds) => whole((*seconds).try_into().ok()),
        Value::F64(seconds) => (*seconds >= 0.0).then_some((seconds * SECOND) as u64),
        _ => None,
    };
    match microseconds {
        Some(microseconds) => Ok((format!("{stem}USec"), Value::U64(microseconds))),
        None => Err("is a time: give a number of seconds".to_owned()),
    }
}

/// One value in GVariant's text form.
fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { rest: text };
    let value = parser.value(None)?;
    parser.skip_space();
    match parser.rest {
        "" => Ok(value),
        rest => Err(format!("{rest:?} is too much")),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes a letter when it comes next.
    fn takes(&mut self, letter: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(letter) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> &'a str {
        self.skip_space();
        let end = self
            .rest
            .find(|letter: char| !(letter.is_ascii_alphanumeric() || "+-._".contains(letter)))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// A value of the type with this signature; without one, of the type that the text has.
    fn value(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        self.skip_space();
        let mismatch = |got: &str| match wanted {
            Some(wanted) => format!("{got} where the type is {wanted}"),
            None => format!("{got} is not a value"),
        };
        match self.rest.chars().next() {
            None => Err("it ends too early".to_owned()),
            Some('@') => {
                let signature = &self.rest[1..];
                let length = first_type(signature).map_err(|_| mismatch(self.rest))?;
                let (signature, rest) = signature.split_at(length);
                self.rest = rest;
                self.value(Some(signature))
            }
            Some('[') => self.array(wanted),
            Some('(') => self.fields(wanted),
            Some('<') => {
                self.takes('<');
                let value = self.value(None)?;
                if !self.takes('>') {
                    return Err("> is missing".to_owned());
                }
                match wanted {
                    None | Some("v") => Ok(Value::Variant(Box::new(value))),
                    Some(_) => Err(mismatch("<>")),
                }
            }
            Some(quote @ ('\'' | '"')) => {
                let text = self.text(quote)?;
                match wanted {
                    None | Some("s") => Ok(Value::Str(text)),
                    Some("o") => Ok(Value::Path(text)),
                    Some("g") => Ok(Value::Signature(text)),
                    Some(_) => Err(mismatch("a text")),
                }
            }
            Some(_) => {
                let word = self.word();
                match (word, keyword(word)) {
                    ("", _) => Err(mismatch(self.rest)),
                    ("true" | "false", _) if matches!(wanted, None | Some("b")) => {
                        Ok(Value::Bool(word == "true"))
                    }
                    (_, Some(signature)) => self.value(Some(signature)),
                    _ => number(word, wanted).ok_or_else(|| mismatch(word)),
                }
            }
        }
    }

    fn array(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        let mut element = match wanted {
            None => None,
            Some(wanted) => Some(
                wanted
                    .strip_prefix('a')
                    .ok_or_else(|| format!("a list where the type is {wanted}"))?
                    .to_owned(),
            ),
        };
        let mut values = Vec::new();
        self.takes('[');
        while !self.takes(']') {
            if !values.is_empty() && !self.takes(',') {
                return Err("] or , is missing".to_owned());
            }
            let value = self.value(element.as_deref())?;
            let signature = value.signature();
            match &element {
                None => element = Some(signature),
                Some(element) if *element == signature => {}
                Some(element) => return Err(format!("{signature} in a list of {element}")),
            }
            values.push(value);
        }
        let element = element.ok_or("an empty list needs its type, as in @as []")?;
        Ok(Value::Array(element, values))
    }

    fn fields(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        let mut types = match wanted {
            None => None,
            Some(wanted) => Some(
                wanted
                    .strip_prefix('(')
                    .and_then(|rest| rest.strip_suffix(')'))
                    .ok_or_else(|| format!("a tuple where the type is {wanted}"))?,
            ),
        };
        let mut values = Vec::new();
        self.takes('(');
        while !self.takes(')') {
            if !values.is_empty() && !self.takes(',') {
                return Err(") or , is missing".to_owned());
            }
            // A tuple of one ends with a comma.
            if values.len() == 1 && self.takes(')') {
                break;
            }
            let first = match &mut types {
                None => None,
                Some(rest) => {
                    let length = first_type(rest).map_err(|_| "a tuple is too long")?;
                    let (first, other) = rest.split_at(length);
                    *rest = other;
                    Some(first)
                }
            };
            values.push(self.value(first)?);
        }
        if values.is_empty() || types.is_some_and(|rest| !rest.is_empty()) {
            return Err("a tuple is too short".to_owned());
        }
        Ok(Value::Struct(values))
    }

    fn text(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        let mut letters = self.rest.char_indices().skip(1);
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => match letters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, other)) if !other.is_ascii_alphanumeric() => text.push(other),
                    _ => return Err("an unknown escape in a text".to_owned()),
                },
                letter if letter == quote => {
                    self.rest = &self.rest[at + letter.len_utf8()..];
                    return Ok(text);
                }
                other => text.push(other),
            }
        }
        Err("a text without end".to_owned())
    }
}

/// The type that a word before a value names.
fn keyword(word: &str) -> Option<&'static str> {
    Some(match word {
        "boolean" => "b",
        "byte" => "y",
        "int16" => "n",
        "uint16" => "q",
        "int32" => "i",
        "uint32" => "u",
        "int64" => "x",
        "uint64" => "t",
        "double" => "d",
        "string" => "s",
        "objectpath" => "o",
        "signature" => "g",
        _ => return None,
    })
}

/// A number of a type; without one, a whole number is an `int32`.
fn number(word: &str, wanted: Option<&str>) -> Option<Value> {
    fn whole<T: TryFrom<i128>>(word: &str) -> Option<T> {
        let (sign, digits) = match word.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, word.strip_prefix('+').unwrap_or(word)),
        };
        let value: i128 = match digits.strip_prefix("0x") {
            Some(digits) => i128::from_str_radix(digits, 16).ok()?,
            None => digits.parse().ok()?,
        };
        T::try_from(sign * value).ok()
    }
    Some(match wanted {
        Some("y") => Value::Byte(whole(word)?),
        Some("n") => Value::I16(whole(word)?),
        Some("q") => Value::U16(whole(word)?),
        Some("i") => Value::I32(whole(word)?),
        Some("u") => Value::U32(whole(word)?),
        Some("x") => Value::I64(whole(word)?),
        Some("t") => Value::U64(whole(word)?),
        Some("d") => Value::F64(word.parse().ok()?),
        Some(_) => return None,
        None => match whole(word) {
            Some(value) => Value::I32(value),
            None if word.contains(['.', 'e']) => Value::F64(word.parse().ok()?),
            None => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_type_that_the_text_says() {
        let texts = Value::Array(
            "s".to_owned(),
            vec![Value::text("a.service"), Value::text("b")],
        );
        for (text, value) in [
            ("'inactive-or-failed'", Value::text("inactive-or-failed")),
            ("\"it's\"", Value::text("it's")),
            ("true", Value::Bool(true)),
            ("5", Value::I32(5)),
            ("-5", Value::I32(-5)),
            ("2.5", Value::F64(2.5)),
            ("uint64 123456789", Value::U64(123_456_789)),
            ("@t 0x10", Value::U64(16)),
            (" ['a.service', 'b'] ", texts),
            ("@as []", Value::Array("s".to_owned(), vec![])),
            (
                "@a(st) [('/dev/sda', 5)]",
                Value::Array(
                    "(st)".to_owned(),
                    vec![Value::Struct(vec![Value::text("/dev/sda"), Value::U64(5)])],
                ),
            ),
            (
                "[byte 1, 2]",
                Value::Array("y".to_owned(), vec![Value::Byte(1), Value::Byte(2)]),
            ),
            ("<'x'>", Value::Variant(Box::new(Value::text("x")))),
        ] {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn broken_values_are_refused() {
        for text in [
            "",
            "'a",
            "[]",
            "[1, 'a']",
            "uint16 70000",
            "uint32 -1",
            "@t 'a'",
            "1 2",
            "nan-sense",
            "(1",
            "@(ss) ('a')",
            "4294967296",
            "@z 1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        let annotations = |key: &str, value: &str| {
            let map = HashMap::from([
                (key.to_owned(), value.to_owned()),
                ("other".to_owned(), "x".to_owned()),
            ]);
            annotated_properties(&map)
        };
        let microseconds = |value| Ok(vec![("TimeoutStopUSec".to_owned(), Value::U64(value))]);
        let key = "org.systemd.property.TimeoutStopSec";
        assert_eq!(annotations(key, "uint64 5"), microseconds(5_000_000));
        assert_eq!(annotations(key, "1.5"), microseconds(1_500_000));
        let direct = "org.systemd.property.TimeoutStopUSec";
        assert_eq!(annotations(direct, "uint64 5"), microseconds(5));
        for (key, value) in [
            (key, "'soon'"),
            (key, "-1"),
            ("org.systemd.property.a.b", "1"),
            ("org.systemd.property.ABC", "x y"),
        ] {
            assert!(annotations(key, value).is_err(), "{key}={value}");
        }
    }
}
