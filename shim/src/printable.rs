//! Text from the guest or from the VMM, made fit for a log or a terminal.

use std::fmt::Write;

/// At most `longest` bytes of printable ASCII; whatever else is written as `\xNN`.
pub fn printable(bytes: &[u8], longest: usize) -> String {
    let mut text = String::with_capacity(bytes.len().min(longest));
    for byte in bytes {
        match byte {
            b' '..=b'~' => text.push(char::from(*byte)),
            b'\t' => text.push(' '),
            other => {
                // Writing to a string does not fail.
                let _ = write!(text, "\\x{other:02x}");
            }
        }
        if text.len() > longest {
            text.truncate(longest);
            text.push_str("...");
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn nothing_moves_a_cursor_or_fills_a_disk() {
        assert_eq!(printable(b"a\tb\x1b[2J\n", 99), "a b\\x1b[2J\\x0a");
        assert_eq!(printable("ä".as_bytes(), 99), "\\xc3\\xa4");
        assert_eq!(printable(&[b'x'; 9], 4), "xxxx...");
    }
}
