//! Kafka's variable-length integers: base 128, least significant group first, zigzag.

/// A number of up to 64 bits at the front of `bytes`, and how many bytes it takes. None where it does not end in them, or is
/// longer than `limit` bytes.
#[inline]
fn unsigned(bytes: &[u8], limit: usize) -> Option<(u64, usize)> {
    // nearly all are one byte long
    let first = *bytes.first()?;
    if first < 0x80 {
        return Some((u64::from(first), 1));
    }
    let mut value = u64::from(first & 0x7f);
    for (index, byte) in bytes.iter().enumerate().take(limit).skip(1) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

const fn zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// Bytes of the longest `varint`.
pub(crate) const INT_BYTES_MAX: usize = 5;

/// A `varint`: what lies beyond 32 bits is cut off, as Kafka's own readers do.
#[inline]
pub(crate) fn int(bytes: &[u8]) -> Option<(i32, usize)> {
    let (value, length) = unsigned(bytes, INT_BYTES_MAX)?;
    #[allow(clippy::cast_possible_truncation, reason = "see above")]
    let value = value as u32;
    let signed = (value >> 1).cast_signed() ^ -((value & 1).cast_signed());
    Some((signed, length))
}

/// A `varlong`.
#[inline]
pub(crate) fn long(bytes: &[u8]) -> Option<(i64, usize)> {
    let (value, length) = unsigned(bytes, 10)?;
    Some((zigzag(value), length))
}

#[cfg(test)]
pub(crate) fn put_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(value in any::<i64>(), small in any::<i32>(), behind in any::<Vec<u8>>()) {
            let mut bytes = Vec::new();
            put_long(&mut bytes, value);
            let length = bytes.len();
            bytes.extend_from_slice(&behind);
            prop_assert_eq!(long(&bytes), Some((value, length)));
            prop_assert_eq!(long(&bytes[..length - 1]), None);
            let mut bytes = Vec::new();
            put_long(&mut bytes, i64::from(small));
            prop_assert_eq!(int(&bytes), Some((small, bytes.len())));
        }
    }

    #[test]
    fn what_does_not_end_is_none() {
        assert_eq!(int(&[]), None);
        assert_eq!(int(&[0x80; 5]), None);
        assert_eq!(long(&[0xff; 10]), None);
        assert_eq!(long(&[0xff; 11]), None);
        // zigzag: 0, -1, 1, -2
        for (byte, value) in [(0, 0), (1, -1), (2, 1), (3, -2)] {
            assert_eq!(int(&[byte]), Some((value, 1)));
        }
    }
}
