//! Aggregates over doubles whose result does not depend on the order of the rows.
//!
//! DataFusion adds doubles one after the other, so that the sum depends on batch borders and on the order of arrival;
//! its min and max depend on the order where NaN or -0.0 occur. Here `sum` and `avg` keep the exact sum, rounded once
//! at the end, and `min` and `max` compare by IEEE 754's total order (NaN is the greatest, -0.0 is below 0.0).

use std::any::Any;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BooleanArray, Float32Builder,
    Float64Array, Float64Builder,
};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float32Type, Float64Type};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};

/// The aggregate that stands in for DataFusion's `name` over arguments of `argument`'s type, if one must.
pub(crate) fn order_free(name: &str, argument: &DataType) -> Option<AggregateUDF> {
    let kind = match (name, argument) {
        ("sum", DataType::Float64) => Kind::Sum,
        ("avg", DataType::Float64) => Kind::Avg,
        ("min", DataType::Float64 | DataType::Float32) => Kind::Min,
        ("max", DataType::Float64 | DataType::Float32) => Kind::Max,
        _ => return None,
    };
    Some(AggregateUDF::from(OrderFree {
        kind,
        signature: Signature::any(1, Volatility::Immutable),
    }))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Sum,
    Avg,
    Min,
    Max,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct OrderFree {
    kind: Kind,
    signature: Signature,
}

impl AggregateUDFImpl for OrderFree {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sum => "sum",
            Kind::Avg => "avg",
            Kind::Min => "min",
            Kind::Max => "max",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(match self.kind {
            Kind::Sum | Kind::Avg => DataType::Float64,
            Kind::Min | Kind::Max => arguments.first().cloned().unwrap_or(DataType::Float64),
        })
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Err(DataFusionError::NotImplemented(
            "order-free aggregates work on groups only".to_owned(),
        ))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let data_type = match self.kind {
            Kind::Sum | Kind::Avg => DataType::Binary,
            Kind::Min | Kind::Max => args.return_field.data_type().clone(),
        };
        Ok(vec![Arc::new(Field::new(args.name, data_type, true))])
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs<'_>) -> bool {
        true
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(match self.kind {
            Kind::Sum => Box::new(Sums::new(false)),
            Kind::Avg => Box::new(Sums::new(true)),
            Kind::Min | Kind::Max => Box::new(Extremes {
                greatest: self.kind == Kind::Max,
                single: args.return_field.data_type() == &DataType::Float32,
                values: Vec::new(),
            }),
        })
    }
}

/// Whether row `row` takes part.
fn takes(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

/// Takes the first groups, or all, out of `groups`.
fn emitted<T>(groups: &mut Vec<T>, emit_to: EmitTo) -> Vec<T> {
    match emit_to {
        EmitTo::All => std::mem::take(groups),
        EmitTo::First(n) => {
            let rest = groups.split_off(n.min(groups.len()));
            std::mem::replace(groups, rest)
        }
    }
}

/// `min` and `max` of doubles and floats by total order. Floats are widened, which keeps their order and comes back.
#[derive(Debug)]
struct Extremes {
    greatest: bool,
    single: bool,
    values: Vec<Option<f64>>,
}

impl Extremes {
    fn see(&mut self, group: usize, value: f64) {
        let slot = &mut self.values[group];
        let better = slot.is_none_or(|old| {
            let order = value.total_cmp(&old);
            if self.greatest {
                order.is_gt()
            } else {
                order.is_lt()
            }
        });
        if better {
            *slot = Some(value);
        }
    }

    fn take(&mut self, emit_to: EmitTo) -> ArrayRef {
        let values = emitted(&mut self.values, emit_to);
        if self.single {
            let mut builder = Float32Builder::with_capacity(values.len());
            for value in values {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "it was widened from a float"
                )]
                builder.append_option(value.map(|value| value as f32));
            }
            return Arc::new(builder.finish());
        }
        Arc::new(Float64Array::from(values))
    }
}

impl GroupsAccumulator for Extremes {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.values.resize(total_num_groups, None);
        let column = first(values)?;
        for (row, &group) in group_indices.iter().enumerate() {
            if column.is_valid(row) && takes(opt_filter, row) {
                let value = if self.single {
                    f64::from(column.as_primitive::<Float32Type>().value(row))
                } else {
                    column.as_primitive::<Float64Type>().value(row)
                };
                self.see(group, value);
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        Ok(self.take(emit_to))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.take(emit_to)])
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.update_batch(values, group_indices, opt_filter, total_num_groups)
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<Option<f64>>()
    }
}

fn first(values: &[ArrayRef]) -> Result<&ArrayRef> {
    values
        .first()
        .ok_or_else(|| DataFusionError::Internal("an aggregate got no argument".to_owned()))
}

/// `sum` and `avg` of doubles.
#[derive(Debug)]
struct Sums {
    average: bool,
    sums: Vec<ExactSum>,
}

impl Sums {
    fn new(average: bool) -> Self {
        Self {
            average,
            sums: Vec::new(),
        }
    }
}

impl GroupsAccumulator for Sums {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.sums.resize_with(total_num_groups, ExactSum::default);
        let column = first(values)?.as_primitive::<Float64Type>();
        for (row, &group) in group_indices.iter().enumerate() {
            if column.is_valid(row) && takes(opt_filter, row) {
                self.sums[group].add(column.value(row));
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = emitted(&mut self.sums, emit_to);
        let mut builder = Float64Builder::with_capacity(sums.len());
        for mut sum in sums {
            let total = (sum.count > 0).then(|| sum.round());
            let count = sum.count as f64;
            builder.append_option(if self.average {
                total.map(|total| total / count)
            } else {
                total
            });
        }
        Ok(Arc::new(builder.finish()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let sums = emitted(&mut self.sums, emit_to);
        let mut builder = BinaryBuilder::new();
        let mut bytes = Vec::new();
        for mut sum in sums {
            if sum.count == 0 {
                builder.append_null();
            } else {
                bytes.clear();
                sum.write(&mut bytes);
                builder.append_value(&bytes);
            }
        }
        Ok(vec![Arc::new(builder.finish())])
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.sums.resize_with(total_num_groups, ExactSum::default);
        let column: &BinaryArray = first(values)?.as_binary();
        for (row, &group) in group_indices.iter().enumerate() {
            if column.is_valid(row) && takes(opt_filter, row) {
                self.sums[group].merge(column.value(row)).ok_or_else(|| {
                    DataFusionError::Execution("the state of a sum is damaged".to_owned())
                })?;
            }
        }
        Ok(())
    }

    fn size(&self) -> usize {
        let limbs: usize = self.sums.iter().map(|sum| sum.limbs.capacity() * 8).sum();
        limbs + self.sums.capacity() * size_of::<ExactSum>()
    }
}

/// The exact sum of doubles: a fixed-point number in units of 2^-1074, of which only the limbs in use are kept.
#[derive(Clone, Debug, Default)]
struct ExactSum {
    count: u64,
    special: u8,
    /// The place of `limbs[0]`, in limbs of 32 bits.
    low: usize,
    /// Each may hold more than 32 bits, and either sign, until [`ExactSum::carry`].
    limbs: Vec<i64>,
    pending: u32,
}

const NAN: u8 = 1;
const POSITIVE_INFINITY: u8 = 2;
const NEGATIVE_INFINITY: u8 = 4;
/// 2046 exponents and 52 bits make 66 limbs, and a carry for every record that a topic can hold two more.
const LIMBS_MAX: usize = 70;
const LIMB: i64 = 1 << 32;

impl ExactSum {
    fn add(&mut self, value: f64) {
        self.count += 1;
        if value.is_nan() {
            self.special |= NAN;
            return;
        }
        if value.is_infinite() {
            self.special |= if value > 0.0 {
                POSITIVE_INFINITY
            } else {
                NEGATIVE_INFINITY
            };
            return;
        }
        let bits = value.to_bits();
        let exponent = ((bits >> 52) & 0x7ff) as usize;
        let fraction = bits & ((1 << 52) - 1);
        let (mantissa, shift) = match exponent {
            0 => (fraction, 0),
            _ => (fraction | (1 << 52), exponent - 1),
        };
        if mantissa == 0 {
            return;
        }
        let wide = u128::from(mantissa) << (shift % 32);
        let at = shift / 32;
        self.reach(at, at + 3);
        let negative = value < 0.0;
        for i in 0..3 {
            let limb = ((wide >> (32 * i)) & 0xffff_ffff) as i64;
            self.limbs[at + i - self.low] += if negative { -limb } else { limb };
        }
        self.pending += 1;
        if self.pending == 1 << 29 {
            self.carry();
        }
    }

    /// Makes the limbs from `from` up to `to` exist.
    fn reach(&mut self, from: usize, to: usize) {
        if self.limbs.is_empty() {
            self.low = from;
        } else if from < self.low {
            let missing = self.low - from;
            self.limbs.splice(0..0, std::iter::repeat_n(0, missing));
            self.low = from;
        }
        if to > self.low + self.limbs.len() {
            self.limbs.resize(to - self.low, 0);
        }
    }

    /// Brings every limb but the last into 0..2^32, and trims what is zero: the one form of this number.
    fn carry(&mut self) {
        self.pending = 0;
        let mut carry = 0_i64;
        for limb in &mut self.limbs {
            let value = *limb + carry;
            *limb = value.rem_euclid(LIMB);
            carry = value.div_euclid(LIMB);
        }
        while carry != 0 && carry != -1 {
            self.limbs.push(carry.rem_euclid(LIMB));
            carry = carry.div_euclid(LIMB);
        }
        if carry == -1 {
            self.limbs.push(-1);
        }
        loop {
            match self.limbs.as_mut_slice() {
                [.., 0] => {}
                [.., below, -1] => *below -= LIMB,
                _ => break,
            }
            self.limbs.pop();
        }
        let zeros = self.limbs.iter().take_while(|limb| **limb == 0).count();
        self.limbs.drain(..zeros);
        self.low = if self.limbs.is_empty() {
            0
        } else {
            self.low + zeros
        };
    }

    /// The sum as the nearest double, ties to even.
    fn round(&mut self) -> f64 {
        let infinities = self.special & (POSITIVE_INFINITY | NEGATIVE_INFINITY);
        if self.special & NAN != 0 || infinities == POSITIVE_INFINITY | NEGATIVE_INFINITY {
            return f64::NAN;
        }
        if infinities != 0 {
            return if infinities == POSITIVE_INFINITY {
                f64::INFINITY
            } else {
                f64::NEG_INFINITY
            };
        }
        self.carry();
        let negative = self.limbs.last().is_some_and(|top| *top < 0);
        let mut magnitude = self.clone();
        if negative {
            magnitude.limbs.iter_mut().for_each(|limb| *limb = -*limb);
            magnitude.carry();
        }
        let value = magnitude.round_positive();
        if negative { -value } else { value }
    }

    /// One bit of a number that is not negative.
    fn bit(&self, at: usize) -> u64 {
        let limb = (at / 32)
            .checked_sub(self.low)
            .and_then(|i| self.limbs.get(i));
        limb.map_or(0, |limb| (limb.unsigned_abs() >> (at % 32)) & 1)
    }

    fn round_positive(&self) -> f64 {
        let Some(top) = self.limbs.last() else {
            return 0.0;
        };
        let length = (self.low + self.limbs.len()) * 32 - (top.leading_zeros() as usize - 32);
        let shift = length.saturating_sub(53);
        let mut mantissa = (shift..length)
            .rev()
            .fold(0_u64, |bits, at| (bits << 1) | self.bit(at));
        if length < 53 {
            return f64::from_bits(mantissa);
        }
        if shift > 0 && self.bit(shift - 1) == 1 {
            let odd = mantissa & 1 == 1;
            if odd || (0..shift - 1).any(|at| self.bit(at) == 1) {
                mantissa += 1;
            }
        }
        let (mantissa, shift) = if mantissa == 1 << 53 {
            (mantissa >> 1, shift + 1)
        } else {
            (mantissa, shift)
        };
        let exponent = shift as u64 + 1;
        if exponent >= 0x7ff {
            return f64::INFINITY;
        }
        f64::from_bits((exponent << 52) | (mantissa & ((1 << 52) - 1)))
    }

    /// count u64, special u8, low u8, then the limbs: u32 each, the last an i64. Little-endian.
    fn write(&mut self, bytes: &mut Vec<u8>) {
        self.carry();
        bytes.extend_from_slice(&self.count.to_le_bytes());
        bytes.push(self.special);
        bytes.push(u8::try_from(self.low).unwrap_or(u8::MAX));
        if let Some((top, rest)) = self.limbs.split_last() {
            for limb in rest {
                // All but the last are in 0..2^32.
                bytes.extend_from_slice(&limb.to_le_bytes()[..4]);
            }
            bytes.extend_from_slice(&top.to_le_bytes());
        }
    }

    /// Adds what [`ExactSum::write`] wrote; `None` if it did not write this.
    fn merge(&mut self, bytes: &[u8]) -> Option<()> {
        let (count, rest) = bytes.split_first_chunk::<8>()?;
        let ([special, low], rest) = rest.split_first_chunk::<2>()?;
        self.count = self.count.checked_add(u64::from_le_bytes(*count))?;
        self.special |= special;
        let Some((limbs, top)) = rest.split_last_chunk::<8>() else {
            return rest.is_empty().then_some(());
        };
        let low = usize::from(*low);
        let length = limbs.len() / 4 + 1;
        if limbs.len() % 4 != 0 || low + length > LIMBS_MAX {
            return None;
        }
        self.reach(low, low + length);
        for (i, limb) in limbs.chunks_exact(4).enumerate() {
            let limb = u32::from_le_bytes(limb.try_into().ok()?);
            self.limbs[low + i - self.low] += i64::from(limb);
        }
        let top = i64::from_le_bytes(*top);
        if !(-LIMB..LIMB).contains(&top) {
            return None;
        }
        self.limbs[low + length - 1 - self.low] += top;
        self.pending += 1;
        if self.pending >= 1 << 29 {
            self.carry();
        }
        Some(())
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these sums are exact")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(values: &[f64]) -> f64 {
        let mut sum = ExactSum::default();
        values.iter().for_each(|value| sum.add(*value));
        sum.round()
    }

    /// Any bits of a finite double, near numbers as often as extreme ones.
    fn double() -> impl Strategy<Value = f64> {
        prop_oneof![
            (-1_000_000_i64..1_000_000).prop_map(|cents| cents as f64 / 100.0),
            any::<u64>()
                .prop_map(f64::from_bits)
                .prop_filter("finite", |v| v.is_finite()),
            any::<u64>().prop_map(|bits| f64::from_bits(bits & 0x800f_ffff_ffff_ffff)),
        ]
    }

    #[test]
    fn sums_are_exact_where_adding_one_by_one_is_not() {
        assert_eq!(
            sum(&[1e308, 1e308, -1e308, -1e308]).to_bits(),
            0.0_f64.to_bits()
        );
        assert_eq!(sum(&[1.0, 1e100, 1.0, -1e100]), 2.0);
        assert_eq!(sum(&[0.1; 10]), 1.0);
        assert_eq!(sum(&[f64::MAX, f64::MAX]), f64::INFINITY);
        assert_eq!(
            sum(&[f64::from_bits(1), f64::from_bits(1)]),
            f64::from_bits(2)
        );
        assert_eq!(sum(&[-1.0, -2.5]), -3.5);
        assert_eq!(
            sum(&[9_007_199_254_740_992.0, 1.0]),
            9_007_199_254_740_992.0
        );
        assert_eq!(
            sum(&[9_007_199_254_740_992.0, 1.0, f64::from_bits(1)]),
            9_007_199_254_740_994.0
        );
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert_eq!(sum(&[f64::INFINITY, 1.0]), f64::INFINITY);
    }

    proptest! {
        #[test]
        fn one_or_two_doubles_sum_as_the_machine_adds_them(a in double(), b in double()) {
            prop_assert_eq!(sum(&[a]), a);
            prop_assert_eq!(sum(&[a, b]), a + b);
            prop_assert_eq!(sum(&[a, b, -a]), b);
        }

        #[test]
        fn order_and_cuts_change_nothing(values in prop::collection::vec(double(), 0..40), cut in 0_usize..40) {
            let cut = cut.min(values.len());
            let mut whole = ExactSum::default();
            values.iter().for_each(|value| whole.add(*value));
            let mut merged = ExactSum::default();
            for part in [&values[cut..], &values[..cut]] {
                let mut one = ExactSum::default();
                part.iter().rev().for_each(|value| one.add(*value));
                let mut bytes = Vec::new();
                one.write(&mut bytes);
                prop_assert!(merged.merge(&bytes).is_some());
            }
            prop_assert_eq!(merged.round().to_bits(), whole.round().to_bits());
            let (mut a, mut b) = (Vec::new(), Vec::new());
            merged.write(&mut a);
            whole.write(&mut b);
            prop_assert_eq!(a, b, "the bytes are the one form of the sum");
        }
    }
}
