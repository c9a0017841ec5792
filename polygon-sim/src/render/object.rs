//! Writes one JSON object, compact and in the order of the calls.

/// An object being written. Numbers are written digit by digit, never through floating point.
pub(super) struct Object<'o> {
    out: &'o mut String,
    decimals: u8,
}

impl<'o> Object<'o> {
    /// Starts `{"ev":"..."`. Prices get this many decimals.
    pub(super) fn open(ev: &str, decimals: u8, out: &'o mut String) -> Self {
        out.push_str("{\"ev\":\"");
        out.push_str(ev);
        out.push('"');
        Self { out, decimals }
    }

    fn key(&mut self, key: &str) {
        self.out.push_str(",\"");
        self.out.push_str(key);
        self.out.push_str("\":");
    }

    /// A string that needs no escapes.
    pub(super) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        self.out.push('"');
        self.out.push_str(value);
        self.out.push('"');
        self
    }

    pub(super) fn int(&mut self, key: &str, value: u64) -> &mut Self {
        self.key(key);
        push_digits(self.out, value, 1);
        self
    }

    /// An integer inside a string.
    pub(super) fn int_text(&mut self, key: &str, value: u64) -> &mut Self {
        self.key(key);
        self.out.push('"');
        push_digits(self.out, value, 1);
        self.out.push('"');
        self
    }

    pub(super) fn ints(&mut self, key: &str, values: &[u64]) -> &mut Self {
        self.key(key);
        let mut before = '[';
        for value in values {
            self.out.push(before);
            push_digits(self.out, *value, 1);
            before = ',';
        }
        self.out.push(']');
        self
    }

    /// A price in price units, without trailing zeros.
    pub(super) fn price(&mut self, key: &str, units: i64) -> &mut Self {
        self.fixed(key, units, self.decimals)
    }

    /// A price inside a string.
    pub(super) fn price_text(&mut self, key: &str, units: i64) -> &mut Self {
        self.key(key);
        self.out.push('"');
        push_fixed(self.out, units, self.decimals, false);
        self.out.push('"');
        self
    }

    /// `units` of 10^-`decimals`, without trailing zeros.
    pub(super) fn fixed(&mut self, key: &str, units: i64, decimals: u8) -> &mut Self {
        self.key(key);
        push_fixed(self.out, units, decimals, false);
        self
    }

    /// The same inside a string, with every decimal.
    pub(super) fn fixed_text(&mut self, key: &str, units: i64, decimals: u8) -> &mut Self {
        self.key(key);
        self.out.push('"');
        push_fixed(self.out, units, decimals, true);
        self.out.push('"');
        self
    }

    /// An array of `[price,size]` arrays, sizes in units of 10^-4.
    pub(super) fn levels(&mut self, key: &str, levels: &[(i64, i64)]) -> &mut Self {
        self.key(key);
        let mut before = '[';
        for (price, size) in levels {
            self.out.push(before);
            self.out.push('[');
            push_fixed(self.out, *price, self.decimals, false);
            self.out.push(',');
            push_fixed(self.out, *size, 4, false);
            self.out.push(']');
            before = ',';
        }
        self.out.push(']');
        self
    }

    pub(super) fn yes(&mut self, key: &str) -> &mut Self {
        self.key(key);
        self.out.push_str("true");
        self
    }

    pub(super) fn close(&mut self) {
        self.out.push('}');
    }
}

/// Pushes `value` with at least `width` digits, padded with zeros.
fn push_digits(out: &mut String, mut value: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    while value > 0 || digits.len() - start < width {
        start -= 1;
        digits[start] = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
    out.push_str(std::str::from_utf8(&digits[start..]).unwrap_or("0"));
}

fn push_fixed(out: &mut String, units: i64, decimals: u8, keep_zeros: bool) {
    if units < 0 {
        out.push('-');
    }
    let one = 10_u64.pow(decimals.into());
    let units = units.unsigned_abs();
    push_digits(out, units / one, 1);
    let (mut fraction, mut width) = (units % one, usize::from(decimals));
    if !keep_zeros {
        if fraction == 0 {
            return;
        }
        while fraction % 10 == 0 {
            fraction /= 10;
            width -= 1;
        }
    }
    out.push('.');
    push_digits(out, fraction, width);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(units: i64, decimals: u8, keep_zeros: bool, expected: &str) {
        let mut out = String::new();
        push_fixed(&mut out, units, decimals, keep_zeros);
        assert_eq!(out, expected);
    }

    #[test]
    fn writes_decimals_exactly() {
        check(2_314_175, 4, false, "231.4175");
        check(2_314_000, 4, false, "231.4");
        check(2_310_000, 4, false, "231");
        check(5, 4, false, "0.0005");
        check(0, 2, false, "0");
        check(-125, 2, false, "-1.25");
        check(12_350_000, 6, true, "12.350000");
        check(41_877, 8, false, "0.00041877");
    }

    #[test]
    fn writes_the_largest_number() {
        let mut out = String::new();
        push_digits(&mut out, u64::MAX, 1);
        assert_eq!(out, u64::MAX.to_string());
    }
}
