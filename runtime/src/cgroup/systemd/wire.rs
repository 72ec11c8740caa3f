//! D-Bus values and messages as bytes (the D-Bus specification, "Marshaling" and "Message
//! Format"), little endian, as far as talking to systemd needs them: maps are read and not written, and there
//! are no descriptors.

use std::fmt;

/// A value with its type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// `y`
    Byte(u8),
    /// `b`
    Bool(bool),
    /// `n`
    I16(i16),
    /// `q`
    U16(u16),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `d`
    F64(f64),
    /// `s`
    Str(String),
    /// `o`
    Path(String),
    /// `g`
    Signature(String),
    /// `a`: the signature of the elements, and the elements.
    Array(String, Vec<Value>),
    /// `()`
    Struct(Vec<Value>),
    /// `v`
    Variant(Box<Value>),
}

impl Value {
    /// A string.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Str(text.into())
    }

    /// Its type as D-Bus writes it.
    pub(crate) fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".into(),
            Self::Bool(_) => "b".into(),
            Self::I16(_) => "n".into(),
            Self::U16(_) => "q".into(),
            Self::I32(_) => "i".into(),
            Self::U32(_) => "u".into(),
            Self::I64(_) => "x".into(),
            Self::U64(_) => "t".into(),
            Self::F64(_) => "d".into(),
            Self::Str(_) => "s".into(),
            Self::Path(_) => "o".into(),
            Self::Signature(_) => "g".into(),
            Self::Array(element, _) => format!("a{element}"),
            Self::Struct(fields) => format!("({})", signatures(fields)),
            Self::Variant(_) => "v".into(),
        }
    }

    /// The text of a string, a path or a signature.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Path(text) | Self::Signature(text) => Some(text),
            _ => None,
        }
    }
}

/// The types of several values, one after the other.
pub(crate) fn signatures(values: &[Value]) -> String {
    values.iter().map(Value::signature).collect()
}

/// Bytes that are not a value of the type that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer is not a D-Bus message")
    }
}

/// The alignment of a type, by the first letter of its signature.
fn alignment(letter: u8) -> Result<usize, Malformed> {
    Ok(match letter {
        b'y' | b'g' | b'v' => 1,
        b'n' | b'q' => 2,
        b'b' | b'i' | b'u' | b's' | b'o' | b'a' => 4,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => return Err(Malformed),
    })
}

/// Writes values; all is aligned to the start of the message.
#[derive(Debug, Default)]
struct Encoder(Vec<u8>);

impl Encoder {
    fn align(&mut self, to: usize) {
        while !self.0.len().is_multiple_of(to) {
            self.0.push(0);
        }
    }

    fn number(&mut self, bytes: &[u8]) {
        self.align(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.number(&(text.len() as u32).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Byte(value) => self.0.push(*value),
            Value::Bool(value) => self.number(&u32::from(*value).to_le_bytes()),
            Value::I16(value) => self.number(&value.to_le_bytes()),
            Value::U16(value) => self.number(&value.to_le_bytes()),
            Value::I32(value) => self.number(&value.to_le_bytes()),
            Value::U32(value) => self.number(&value.to_le_bytes()),
            Value::I64(value) => self.number(&value.to_le_bytes()),
            Value::U64(value) => self.number(&value.to_le_bytes()),
            Value::F64(value) => self.number(&value.to_le_bytes()),
            Value::Str(text) | Value::Path(text) => self.text(text),
            Value::Signature(text) => self.signature(text),
            Value::Array(element, values) => {
                self.number(&[0; 4]);
                let length_at = self.0.len() - 4;
                // The length does not count the padding before the first element.
                self.align(
                    element
                        .bytes()
                        .next()
                        .map_or(1, |letter| alignment(letter).unwrap_or(1)),
                );
                let start = self.0.len();
                values.iter().for_each(|value| self.value(value));
                let length = (self.0.len() - start) as u32;
                self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
            }
            Value::Struct(fields) => {
                self.align(8);
                fields.iter().for_each(|field| self.value(field));
            }
            Value::Variant(value) => {
                self.signature(&value.signature());
                self.value(value);
            }
        }
    }
}

/// Reads values.
struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(length).ok_or(Malformed)?;
        let bytes = self.bytes.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.align(N);
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        Ok(u32::from_le_bytes(self.number()?) as usize)
    }

    fn text(&mut self, length: usize) -> Result<String, Malformed> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| Malformed)?;
        self.take(1)?;
        Ok(text.to_owned())
    }

    /// All values that a signature names.
    fn values(&mut self, mut signature: &str) -> Result<Vec<Value>, Malformed> {
        let mut values = Vec::new();
        while !signature.is_empty() {
            let (first, rest) = signature.split_at(first_type(signature)?);
            values.push(self.value(first)?);
            signature = rest;
        }
        Ok(values)
    }

    fn value(&mut self, signature: &str) -> Result<Value, Malformed> {
        Ok(match signature.as_bytes().first().ok_or(Malformed)? {
            b'y' => Value::Byte(self.take(1)?[0]),
            b'b' => Value::Bool(u32::from_le_bytes(self.number()?) != 0),
            b'n' => Value::I16(i16::from_le_bytes(self.number()?)),
            b'q' => Value::U16(u16::from_le_bytes(self.number()?)),
            b'i' => Value::I32(i32::from_le_bytes(self.number()?)),
            b'u' => Value::U32(u32::from_le_bytes(self.number()?)),
            b'x' => Value::I64(i64::from_le_bytes(self.number()?)),
            b't' => Value::U64(u64::from_le_bytes(self.number()?)),
            b'd' => Value::F64(f64::from_le_bytes(self.number()?)),
            b's' => {
                let length = self.length()?;
                Value::Str(self.text(length)?)
            }
            b'o' => {
                let length = self.length()?;
                Value::Path(self.text(length)?)
            }
            b'g' => {
                let length = self.take(1)?[0].into();
                Value::Signature(self.text(length)?)
            }
            b'a' => {
                let element = &signature[1..];
                let length = self.length()?;
                self.align(alignment(*element.as_bytes().first().ok_or(Malformed)?)?);
                let end = self.at.checked_add(length).ok_or(Malformed)?;
                if end > self.bytes.len() {
                    return Err(Malformed);
                }
                let mut values = Vec::new();
                while self.at < end {
                    values.push(self.value(element)?);
                }
                Value::Array(element.to_owned(), values)
            }
            // The entry of a map is read as a pair.
            b'(' | b'{' => {
                self.align(8);
                Value::Struct(self.values(&signature[1..signature.len() - 1])?)
            }
            b'v' => {
                let length = self.take(1)?[0].into();
                let inner = self.text(length)?;
                if first_type(&inner)? != inner.len() {
                    return Err(Malformed);
                }
                Value::Variant(Box::new(self.value(&inner)?))
            }
            _ => return Err(Malformed),
        })
    }
}

/// The length of the first whole type in a signature.
pub(super) fn first_type(signature: &str) -> Result<usize, Malformed> {
    let bytes = signature.as_bytes();
    let arrays = bytes.iter().take_while(|byte| **byte == b'a').count();
    let mut depth = 0usize;
    for (index, letter) in bytes.iter().enumerate().skip(arrays) {
        match letter {
            b'(' | b'{' => depth += 1,
            b')' | b'}' => depth = depth.checked_sub(1).ok_or(Malformed)?,
            b'a' if depth > 0 => continue,
            other => {
                alignment(*other)?;
            }
        }
        if depth == 0 {
            return Ok(index + 1);
        }
    }
    Err(Malformed)
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A call of a method.
    Call = 1,
    /// Its answer.
    Reply = 2,
    /// Its refusal.
    Error = 3,
    /// News.
    Signal = 4,
}

/// A message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    /// What it is.
    pub kind: Kind,
    /// Its number, not 0.
    pub serial: u32,
    /// The number of the call that it answers.
    pub reply_to: Option<u32>,
    /// To whom.
    pub destination: Option<String>,
    /// Of which object.
    pub path: Option<String>,
    /// Of which interface.
    pub interface: Option<String>,
    /// The method or the signal.
    pub member: Option<String>,
    /// The name of an error.
    pub error: Option<String>,
    /// Arguments.
    pub body: Vec<Value>,
}

impl Message {
    /// An empty message.
    pub(crate) fn new(kind: Kind, serial: u32) -> Self {
        Self {
            kind,
            serial,
            reply_to: None,
            destination: None,
            path: None,
            interface: None,
            member: None,
            error: None,
            body: Vec::new(),
        }
    }

    /// As bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Encoder::default();
        self.body.iter().for_each(|value| body.value(value));
        let texts = [
            (2, &self.interface),
            (3, &self.member),
            (4, &self.error),
            (6, &self.destination),
        ];
        let field =
            |code, value| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]);
        let mut fields = Vec::new();
        if let Some(path) = &self.path {
            fields.push(field(1, Value::Path(path.clone())));
        }
        for (code, text) in texts {
            fields.extend(text.clone().map(|text| field(code, Value::Str(text))));
        }
        fields.extend(self.reply_to.map(|serial| field(5, Value::U32(serial))));
        if !self.body.is_empty() {
            fields.push(field(8, Value::Signature(signatures(&self.body))));
        }
        let mut message = Encoder(vec![b'l', self.kind as u8, 0, 1]);
        message.value(&Value::U32(body.0.len() as u32));
        message.value(&Value::U32(self.serial));
        message.value(&Value::Array("(yv)".to_owned(), fields));
        message.align(8);
        message.0.extend(body.0);
        message.0
    }

    /// The length of the message that begins with these 16 bytes.
    pub(crate) fn length(start: &[u8; 16]) -> Result<usize, Malformed> {
        // The longest that the specification allows.
        const LONGEST: usize = 128 << 20;
        let number = |at: usize| {
            let bytes = start[at..at + 4].try_into().unwrap_or([0; 4]);
            u32::from_le_bytes(bytes) as usize
        };
        if start[0] != b'l' || start[3] != 1 {
            return Err(Malformed);
        }
        let length = (16 + number(12)).next_multiple_of(8) + number(4);
        if length > LONGEST {
            return Err(Malformed);
        }
        Ok(length)
    }

    /// From bytes, all of one message.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut decoder = Decoder { bytes, at: 0 };
        let head = decoder.values("yyyyuua(yv)")?;
        let [
            _,
            Value::Byte(kind),
            _,
            _,
            _,
            Value::U32(serial),
            Value::Array(_, fields),
        ] = &head[..]
        else {
            return Err(Malformed);
        };
        let kind = match kind {
            1 => Kind::Call,
            2 => Kind::Reply,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => return Err(Malformed),
        };
        let mut message = Self::new(kind, *serial);
        let mut signature = String::new();
        for field in fields {
            let Value::Struct(field) = field else {
                return Err(Malformed);
            };
            let [Value::Byte(code), Value::Variant(value)] = &field[..] else {
                return Err(Malformed);
            };
            let text = value.as_text().map(str::to_owned);
            match (code, &**value) {
                (1, _) => message.path = text,
                (2, _) => message.interface = text,
                (3, _) => message.member = text,
                (4, _) => message.error = text,
                (5, Value::U32(serial)) => message.reply_to = Some(*serial),
                (6, _) => message.destination = text,
                (8, _) => signature = text.ok_or(Malformed)?,
                _ => {}
            }
        }
        decoder.align(8);
        message.body = decoder.values(&signature)?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Message {
        let mut message = Message::new(Kind::Call, 7);
        message.destination = Some("org.freedesktop.systemd1".to_owned());
        message.path = Some("/org/freedesktop/systemd1".to_owned());
        message.interface = Some("a.b".to_owned());
        message.member = Some("Start".to_owned());
        let property = |name: &str, value| {
            Value::Struct(vec![Value::text(name), Value::Variant(Box::new(value))])
        };
        message.body = vec![
            Value::text("x.scope"),
            Value::Array(
                "(sv)".to_owned(),
                vec![
                    property("PIDs", Value::Array("u".to_owned(), vec![Value::U32(5)])),
                    property("MemoryMax", Value::U64(u64::MAX)),
                    property("Delegate", Value::Bool(true)),
                    property("CPUs", Value::Array("y".to_owned(), vec![Value::Byte(3)])),
                ],
            ),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        message
    }

    #[test]
    fn what_is_written_is_read() {
        let message = example();
        let bytes = message.encode();
        assert_eq!(
            Message::length(bytes[..16].try_into().unwrap()),
            Ok(bytes.len())
        );
        assert_eq!(Message::decode(&bytes), Ok(message));
    }

    #[test]
    fn bytes_are_those_of_the_specification() {
        // Hello, which every client sends first, counted by hand.
        let mut message = Message::new(Kind::Call, 1);
        message.path = Some("/org/freedesktop/DBus".to_owned());
        message.member = Some("Hello".to_owned());
        let mut expected = b"l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00".to_vec();
        expected.extend(b"\x2e\x00\x00\x00");
        expected.extend(b"\x01\x01o\x00\x15\x00\x00\x00/org/freedesktop/DBus\x00\x00\x00");
        expected.extend(b"\x03\x01s\x00\x05\x00\x00\x00Hello\x00\x00\x00");
        assert_eq!(message.encode(), expected);
    }

    #[test]
    fn maps_are_read_as_pairs() {
        // {"a": <true>}: length, "a", the signature "b", the value.
        let bytes = b"\x10\0\0\0\0\0\0\0\x01\0\0\0a\0\x01b\0\0\0\0\x01\0\0\0";
        let mut decoder = Decoder { bytes, at: 0 };
        let pair = vec![
            Value::text("a"),
            Value::Variant(Box::new(Value::Bool(true))),
        ];
        let map = Value::Array("{sv}".to_owned(), vec![Value::Struct(pair)]);
        assert_eq!(decoder.values("a{sv}"), Ok(vec![map]));
    }

    #[test]
    fn cut_and_broken_bytes_are_refused() {
        let bytes = example().encode();
        for length in 0..bytes.len() {
            assert!(Message::decode(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 0xff;
            // It must not panic; whether it is still a message depends on the byte.
            let _ = Message::decode(&broken);
        }
        assert!(Message::length(&[0xff; 16]).is_err());
    }

    #[test]
    fn a_signature_is_split_into_types() {
        for (signature, first) in [
            ("su", 1),
            ("a(sv)as", 5),
            ("(s(uu))s", 7),
            ("aay", 3),
            ("a{sv}s", 5),
        ] {
            assert_eq!(first_type(signature), Ok(first), "{signature}");
        }
        for signature in ["", "a", "(s", ")", "z"] {
            assert!(first_type(signature).is_err(), "{signature}");
        }
    }
}
