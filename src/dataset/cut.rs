//! Cuts a stream of bytes into blocks of whole records.

use super::MAX_BLOCK_BYTES;
use super::format::{Format, RecordError, Search};

/// A block that is full, or the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// At most [`MAX_BLOCK_BYTES`].
    pub bytes: Vec<u8>,
    /// Records in it.
    pub records: u32,
}

/// Why a stream cannot be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("record {record}: {error}")]
pub struct CutError {
    /// Which record, counted from 1.
    pub record: u64,
    /// What is wrong with it.
    #[source]
    pub error: RecordError,
}

/// Cuts what is pushed. Holds at most one block and what was pushed last.
#[derive(Debug)]
pub struct Cutter {
    format: Format,
    buffer: Vec<u8>,
    /// End of the last whole record in `buffer`.
    // Invariant: whole <= MAX_BLOCK_BYTES, and `records` records end there.
    whole: usize,
    records: u32,
    /// How far the end of the record behind `whole` was looked for.
    search: Search,
    /// Records in the blocks before.
    before: u64,
}

impl Cutter {
    /// Nothing was pushed yet.
    pub fn new(format: Format) -> Self {
        Self { format, buffer: Vec::new(), whole: 0, records: 0, search: Search::default(), before: 0 }
    }

    /// Takes in bytes; full blocks go to `full`.
    ///
    /// # Errors
    /// If a record is too long. The blocks cut before are good.
    pub fn push(&mut self, bytes: &[u8], full: &mut Vec<Block>) -> Result<(), CutError> {
        self.buffer.extend_from_slice(bytes);
        loop {
            let found = self.format.end(&self.buffer[self.whole..], &mut self.search);
            let length = match found.map_err(|error| self.error(error))? {
                Some(length) => length,
                None if self.buffer.len() - self.whole > MAX_BLOCK_BYTES => {
                    return Err(self.error(RecordError::TooLong));
                }
                None => return Ok(()),
            };
            if length > MAX_BLOCK_BYTES {
                return Err(self.error(RecordError::TooLong));
            }
            if self.whole + length > MAX_BLOCK_BYTES {
                full.push(self.cut());
            }
            self.whole += length;
            self.records += 1;
        }
    }

    /// Bytes that wait for their block to be full.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// Ends the stream: what is left, if anything is.
    ///
    /// # Errors
    /// If it ends in the middle of a record.
    pub fn finish(mut self, full: &mut Vec<Block>) -> Result<(), CutError> {
        if self.buffer.len() > self.whole {
            // A last line may lack its end.
            if self.format == Format::Records {
                return Err(self.error(RecordError::CutShort));
            }
            let length = self.buffer.len() - self.whole;
            if self.buffer.len() > MAX_BLOCK_BYTES {
                full.push(self.cut());
            }
            self.whole += length;
            self.records += 1;
        }
        if self.whole > 0 {
            full.push(self.cut());
        }
        Ok(())
    }

    fn cut(&mut self) -> Block {
        let rest = self.buffer.split_off(self.whole);
        let bytes = std::mem::replace(&mut self.buffer, rest);
        self.before += u64::from(self.records);
        self.whole = 0;
        Block { bytes, records: std::mem::take(&mut self.records) }
    }

    fn error(&self, error: RecordError) -> CutError {
        CutError { record: self.before + u64::from(self.records) + 1, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(format: Format, pieces: &[&[u8]]) -> Result<Vec<Block>, CutError> {
        let mut blocks = Vec::new();
        let mut cutter = Cutter::new(format);
        for piece in pieces {
            cutter.push(piece, &mut blocks)?;
        }
        cutter.finish(&mut blocks)?;
        Ok(blocks)
    }

    fn whole(blocks: &[Block]) -> Vec<u8> {
        blocks.iter().flat_map(|block| block.bytes.clone()).collect()
    }

    proptest! {
        // Each has megabytes.
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_cut_is_what_was_pushed_however_it_came(
            lengths in prop::collection::vec(0..300_000usize, 0..12),
            piece in 1..400_000usize,
            format in prop::sample::select(vec![Format::Lines, Format::Records, Format::Csv]),
            open_end in any::<bool>(),
        ) {
            let mut stream = Vec::new();
            for (at, length) in lengths.iter().enumerate() {
                let mut content = vec![b'a' + u8::try_from(at).unwrap(); *length];
                if format == Format::Csv && *length > 4 {
                    content[1..4].copy_from_slice(b"\"\n\"");
                }
                format.append(&mut stream, &content);
            }
            if open_end && format != Format::Records {
                stream.pop();
            }
            let pieces: Vec<&[u8]> = stream.chunks(piece).collect();
            let blocks = cut(format, &pieces).unwrap();
            prop_assert_eq!(whole(&blocks), stream.clone());
            let mut found = Vec::new();
            for block in &blocks {
                prop_assert!(block.bytes.len() <= MAX_BLOCK_BYTES && !block.bytes.is_empty());
                let records: Vec<_> = format.records(&block.bytes).map(<[u8]>::len).collect();
                prop_assert_eq!(records.len(), block.records as usize);
                found.extend(records);
            }
            // An empty last line without its end is no record.
            let mut wanted = lengths.clone();
            if open_end && format != Format::Records && wanted.last() == Some(&0) {
                wanted.pop();
            }
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn garbage_never_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            format in prop::sample::select(vec![Format::Lines, Format::Records, Format::Csv]),
        ) {
            drop(cut(format, &[&bytes]));
            let _ = format.records(&bytes).count();
        }
    }

    #[test]
    fn blocks_are_as_full_as_records_allow() {
        let line = [&[b'x'; 99][..], b"\n"].concat();
        let stream = line.repeat(3 * (MAX_BLOCK_BYTES / 100));
        let blocks = cut(Format::Lines, &[&stream]).unwrap();
        assert_eq!(blocks.len(), 3);
        assert!(blocks[..2].iter().all(|block| block.bytes.len() + 100 > MAX_BLOCK_BYTES));
    }

    #[test]
    fn what_cannot_be_cut_is_named() {
        let long = vec![b'x'; MAX_BLOCK_BYTES + 1];
        let error = cut(Format::Lines, &[b"first\n", &long]).unwrap_err();
        assert_eq!(error, CutError { record: 2, error: RecordError::TooLong });
        let error = cut(Format::Records, &[b"\x02\0\0\0ab\x03\0\0\0ab"]).unwrap_err();
        assert_eq!(error, CutError { record: 2, error: RecordError::CutShort });
        let error = cut(Format::Records, &[&u32::MAX.to_le_bytes()]).unwrap_err();
        assert_eq!(error, CutError { record: 1, error: RecordError::TooLong });
        assert_eq!(cut(Format::Lines, &[]).unwrap(), []);
    }
}
