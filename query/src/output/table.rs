//! An aligned table, as psql's: columns are as wide as the first rows need them.

use std::io::Write as _;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, SchemaRef};
use unicode_width::UnicodeWidthStr as _;

use super::cells::{Cells, printable};
use super::{OutputError, Rows, Sink, as_plain, plain};

/// So many rows are looked at before the widths of columns are settled.
const SIZED_ROWS: usize = 1_000;
/// Or so many bytes of text.
const SIZED_BYTES: usize = 4 << 20;
/// A column is not made wider than that: one long value would blow up every row.
const WIDTH_MAX: usize = 120;

pub(super) struct Table {
    sink: Sink,
    schema: SchemaRef,
    head: Vec<String>,
    /// Numbers are flush right.
    right: Vec<bool>,
    widths: Vec<usize>,
    /// Rows that wait for the widths; none once they are settled.
    waiting: Option<Vec<Vec<String>>>,
    waiting_bytes: usize,
    rows: u64,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl Table {
    pub(super) fn new(schema: &SchemaRef, sink: Sink) -> Self {
        let fields = schema.fields();
        let head: Vec<String> = fields
            .iter()
            .map(|f| printable(f.name()).into_owned())
            .collect();
        Self {
            sink,
            widths: head.iter().map(|h| h.width().min(WIDTH_MAX)).collect(),
            head,
            right: fields.iter().map(|f| is_number(f.data_type())).collect(),
            schema: plain(schema),
            waiting: Some(Vec::new()),
            waiting_bytes: 0,
            rows: 0,
        }
    }

    /// Writes the head and what waited.
    fn settle(&mut self) -> Result<(), OutputError> {
        let Some(waiting) = self.waiting.take() else {
            return Ok(());
        };
        for row in &waiting {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width().min(WIDTH_MAX));
            }
        }
        let mut text = String::new();
        self.head_line(&mut text);
        for row in &waiting {
            self.line(row, &mut text);
        }
        self.sink.write_all(text.as_bytes())?;
        Ok(())
    }

    fn head_line(&self, out: &mut String) {
        let last = self.widths.len().saturating_sub(1);
        for (i, (width, name)) in self.widths.iter().zip(&self.head).enumerate() {
            let room = width.saturating_sub(name.width());
            let before = room / 2;
            out.push_str(if i == 0 { " " } else { "| " });
            blanks(out, before);
            out.push_str(name);
            if i < last {
                blanks(out, room - before + 1);
            }
        }
        out.push('\n');
        for (i, width) in self.widths.iter().enumerate() {
            if i > 0 {
                out.push('+');
            }
            out.extend(std::iter::repeat_n('-', width + 2));
        }
        out.push('\n');
    }

    fn line(&self, row: &[String], out: &mut String) {
        let last = self.widths.len().saturating_sub(1);
        let columns = self.widths.iter().zip(&self.right).zip(row);
        for (i, ((width, right), cell)) in columns.enumerate() {
            let room = width.saturating_sub(cell.width());
            out.push_str(if i == 0 { " " } else { "| " });
            if *right {
                blanks(out, room);
                out.push_str(cell);
            } else {
                out.push_str(cell);
                if i < last {
                    blanks(out, room);
                }
            }
            if i < last {
                out.push(' ');
            }
        }
        out.push('\n');
    }
}

impl Rows for Table {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), OutputError> {
        let of_arrow = |error| OutputError::arrow("a table", error);
        let batch = as_plain(batch, &self.schema).map_err(of_arrow)?;
        let columns = batch.columns().iter().map(Cells::of);
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(of_arrow)?;
        let mut text = String::new();
        for row in 0..batch.num_rows() {
            let cells = columns.iter().map(|cells| cells.text(row));
            let cells = cells.collect::<Result<Vec<_>, _>>().map_err(of_arrow)?;
            self.rows += 1;
            match &mut self.waiting {
                Some(waiting) => {
                    self.waiting_bytes += cells.iter().map(String::len).sum::<usize>();
                    waiting.push(cells);
                    if waiting.len() >= SIZED_ROWS || self.waiting_bytes >= SIZED_BYTES {
                        self.settle()?;
                    }
                }
                None => self.line(&cells, &mut text),
            }
            if text.len() >= SIZED_BYTES {
                self.sink.write_all(text.as_bytes())?;
                text.clear();
            }
        }
        self.sink.write_all(text.as_bytes())?;
        if self.waiting.is_none() {
            self.sink.flush()?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), OutputError> {
        self.settle()?;
        let plural = if self.rows == 1 { "" } else { "s" };
        writeln!(self.sink, "({} row{plural})", self.rows)?;
        self.sink.flush()?;
        Ok(())
    }
}

fn blanks(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

fn is_number(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => is_number(values),
        other => other.is_numeric(),
    }
}
