//! Messages of criu's service, in the encoding of Protocol Buffers: as little of it as these need.

/// The fields of a request's options (`criu_opts`), by their names there.
pub(super) mod option {
    pub const IMAGES_DIR_FD: u64 = 1;
    pub const PID: u64 = 2;
    pub const LEAVE_RUNNING: u64 = 3;
    pub const EXT_UNIX_SK: u64 = 4;
    pub const TCP_ESTABLISHED: u64 = 5;
    pub const EVASIVE_DEVICES: u64 = 6;
    pub const SHELL_JOB: u64 = 7;
    pub const FILE_LOCKS: u64 = 8;
    pub const LOG_LEVEL: u64 = 9;
    pub const LOG_FILE: u64 = 10;
    pub const PAGE_SERVER: u64 = 11;
    pub const NOTIFY_SCRIPTS: u64 = 12;
    pub const ROOT: u64 = 13;
    pub const PARENT_IMG: u64 = 14;
    pub const TRACK_MEM: u64 = 15;
    pub const AUTO_DEDUP: u64 = 16;
    pub const WORK_DIR_FD: u64 = 17;
    pub const LINK_REMAP: u64 = 18;
    pub const EXT_MNT: u64 = 23;
    pub const MANAGE_CGROUPS: u64 = 24;
    pub const CG_ROOT: u64 = 25;
    pub const RST_SIBLING: u64 = 26;
    pub const INHERIT_FD: u64 = 27;
    pub const MANAGE_CGROUPS_MODE: u64 = 34;
    pub const EXTERNAL: u64 = 37;
    pub const EMPTY_NS: u64 = 38;
    pub const JOIN_NS: u64 = 39;
    pub const FREEZE_CGROUP: u64 = 44;
    pub const TCP_SKIP_IN_FLIGHT: u64 = 46;
    pub const ORPHAN_PTS_MASTER: u64 = 50;
    pub const CONFIG_FILE: u64 = 51;
    pub const LSM_PROFILE: u64 = 53;
    pub const LSM_MOUNT_CONTEXT: u64 = 63;
}

/// A message to be sent. Fields are known by their numbers in criu's `rpc.proto`.
#[derive(Debug, Default, Clone)]
pub(super) struct Message(Vec<u8>);

const NUMBER: u64 = 0;
const BYTES: u64 = 2;

impl Message {
    /// Adds a number; a flag is 0 or 1.
    pub(super) fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.put(field << 3 | NUMBER);
        self.put(value);
        self
    }

    /// Adds a flag if it is set.
    pub(super) fn flag(&mut self, field: u64, value: bool) -> &mut Self {
        if value {
            self.number(field, 1);
        }
        self
    }

    /// Adds a text, or bytes.
    pub(super) fn text(&mut self, field: u64, value: impl AsRef<[u8]>) -> &mut Self {
        let value = value.as_ref();
        self.put(field << 3 | BYTES);
        self.put(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// Adds a message.
    pub(super) fn message(&mut self, field: u64, value: &Self) -> &mut Self {
        self.text(field, &value.0)
    }

    /// Adds a message of two texts, fields 1 and 2.
    pub(super) fn pair(&mut self, field: u64, one: impl AsRef<[u8]>, two: impl AsRef<[u8]>) {
        let mut pair = Self::default();
        pair.text(1, one).text(2, two);
        self.message(field, &pair);
    }

    /// What is sent.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn put(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// What a field of a received message has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number or a flag.
    Number(u64),
    /// A text or a message.
    Bytes(&'a [u8]),
}

/// The fields of a received message, up to the first that cannot be read.
pub(super) fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || {
        let key = take(&mut rest)?;
        let value = match key & 7 {
            NUMBER => Value::Number(take(&mut rest)?),
            BYTES => {
                let length = usize::try_from(take(&mut rest)?).ok()?;
                let (bytes, after) = rest.split_at_checked(length)?;
                rest = after;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some((key >> 3, value))
    })
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_as_protocol_buffers() {
        let mut inner = Message::default();
        inner.number(2, 300).flag(3, true).flag(4, false);
        let mut message = Message::default();
        message.number(1, 2).message(2, &inner).pair(3, "a", "bc");
        assert_eq!(
            message.bytes(),
            b"\x08\x02\x12\x05\x10\xac\x02\x18\x01\x1a\x07\x0a\x01a\x12\x02bc"
        );
        let read: Vec<_> = fields(message.bytes()).collect();
        assert_eq!(read[0], (1, Value::Number(2)));
        assert_eq!(read[1], (2, Value::Bytes(inner.bytes())));
        let inner: Vec<_> = fields(inner.bytes()).collect();
        assert_eq!(inner, [(2, Value::Number(300)), (3, Value::Number(1))]);
    }

    #[test]
    fn what_is_cut_off_ends_the_message() {
        for bytes in [
            &b"\x08"[..],
            b"\x12\x05ab",
            b"\x80",
            b"\x0d\x00\x00\x00\x00",
            &[0xff; 20],
        ] {
            assert_eq!(fields(bytes).count(), 0, "{bytes:?}");
        }
    }
}
