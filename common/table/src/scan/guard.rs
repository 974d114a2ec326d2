//! A footer walked before it is parsed. The parser reserves memory for as many elements as a list claims to have, so a few
//! bytes can ask for more than the machine has, which ends the process. Here every element must be there.

/// Footers larger than this are refused.
pub(crate) const FOOTER_BYTES_MAX: usize = 32 << 20;
/// Structures in a footer; each costs the parser a few hundred bytes.
const STRUCTS_MAX: usize = 2_000_000;
/// Columns and groups of columns. They may nest, and the parser recurses.
const SCHEMA_ELEMENTS_MAX: usize = 4096;
/// How deep structures may nest.
const DEPTH_MAX: usize = 16;
/// The footer's field with the schema.
const SCHEMA_FIELD: i16 = 2;

/// Whether a footer holds what it claims to hold, and no more than is reasonable.
pub(crate) fn check(footer: &[u8]) -> Result<(), &'static str> {
    let mut walker = Walker {
        rest: footer,
        structs: 0,
    };
    walker.structure(0)
}

struct Walker<'a> {
    rest: &'a [u8],
    structs: usize,
}

const SHORT: &str = "the footer ends early";

impl Walker<'_> {
    fn byte(&mut self) -> Result<u8, &'static str> {
        let (first, rest) = self.rest.split_first().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*first)
    }

    fn skip(&mut self, len: u64) -> Result<(), &'static str> {
        let len = usize::try_from(len).map_err(|_| SHORT)?;
        self.rest = self.rest.get(len..).ok_or(SHORT)?;
        Ok(())
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("the footer has a number that is too long")
    }

    /// Fields up to the end mark: each a byte of distance to the field before and type, then the value.
    fn structure(&mut self, depth: usize) -> Result<(), &'static str> {
        self.structs += 1;
        if depth > DEPTH_MAX || self.structs > STRUCTS_MAX {
            return Err("the footer has too many structures");
        }
        let mut field = 0_i16;
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Ok(());
            }
            field = match header >> 4 {
                0 => {
                    self.varint()?;
                    i16::MAX
                }
                distance => field.saturating_add(i16::from(distance)),
            };
            match header & 0x0f {
                // The value of a boolean field is its type.
                1 | 2 => {}
                9 | 10 if depth == 0 && field == SCHEMA_FIELD => {
                    self.list(depth, SCHEMA_ELEMENTS_MAX)?;
                }
                kind => self.value(kind, depth)?,
            }
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<(), &'static str> {
        match kind {
            1..=3 => self.skip(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip(8),
            8 => {
                let len = self.varint()?;
                self.skip(len)
            }
            9 | 10 => self.list(depth, usize::MAX),
            11 => self.map(depth),
            12 => self.structure(depth + 1),
            _ => Err("the footer has a value of no known type"),
        }
    }

    fn list(&mut self, depth: usize, most: usize) -> Result<(), &'static str> {
        if depth > DEPTH_MAX {
            return Err("the footer nests too deep");
        }
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => usize::try_from(self.varint()?).map_err(|_| SHORT)?,
            count => usize::from(count),
        };
        // An element takes a byte at least.
        if count > self.rest.len() || count > most {
            return Err("the footer has a list that is too long");
        }
        for _ in 0..count {
            self.value(header & 0x0f, depth + 1)?;
        }
        Ok(())
    }

    fn map(&mut self, depth: usize) -> Result<(), &'static str> {
        let count = self.varint()?;
        if count == 0 {
            return Ok(());
        }
        let kinds = self.byte()?;
        if depth > DEPTH_MAX || count > self.rest.len() as u64 {
            return Err("the footer has a map that is too long");
        }
        for _ in 0..count {
            self.value(kinds >> 4, depth + 1)?;
            self.value(kinds & 0x0f, depth + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_bytes_cannot_ask_for_much_memory() {
        // Field 2, a list of structures, 2^31 - 1 of them.
        let schema = [0x29, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0x00];
        assert!(check(&schema).is_err());
        // Field 4, the row groups.
        let row_groups = [0x49, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07, 0x00];
        assert!(check(&row_groups).is_err());
        // A string longer than the footer.
        assert!(check(&[0x18, 0xff, 0xff, 0x7f, 0x00]).is_err());
        // Structures without end.
        assert!(check(&[0x1c; 1000]).is_err());
        assert!(check(&[0x19; 1000]).is_err());
        assert!(check(&[]).is_err());
    }

    #[test]
    fn a_schema_may_not_have_too_many_elements() {
        let with = |count: usize| {
            let low = u8::try_from(count & 0x7f).unwrap() | 0x80;
            let high = u8::try_from(count >> 7).unwrap();
            let mut footer = vec![0x29, 0xfc, low, high];
            footer.extend(std::iter::repeat_n(0, count + 1));
            footer
        };
        assert_eq!(check(&with(4096)), Ok(()));
        assert!(check(&with(4097)).is_err());
    }
}
