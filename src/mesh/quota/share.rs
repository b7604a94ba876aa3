//! How much: limits, and the shares that they are cut into.
//!
//! All amounts are whole micro-tokens (10⁻⁶ of a request), so that sums are exact on every node.

/// Micro-tokens in one token.
pub const TOKEN: u64 = 1_000_000;

/// Largest rate and burst, in micro-tokens: ten million tokens.
pub const AMOUNT_MAX: u64 = 10_000_000 * TOKEN;

/// Names one limit: a hash that all nodes make of what it is set for.
pub type LimitId = u64;

/// A rate and a burst: a whole limit, or what one node holds of it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Share {
    /// Micro-tokens per second, at most [`AMOUNT_MAX`].
    pub rate: u64,
    /// Most micro-tokens at once, at most [`AMOUNT_MAX`].
    pub burst: u64,
}

impl Share {
    /// Nothing.
    pub const NONE: Self = Self { rate: 0, burst: 0 };

    /// Of whole tokens; what is beyond [`AMOUNT_MAX`] is cut.
    #[must_use]
    pub fn of_tokens(per_second: u64, burst: u64) -> Self {
        let micro = |tokens: u64| tokens.saturating_mul(TOKEN).min(AMOUNT_MAX);
        Self { rate: micro(per_second), burst: micro(burst) }
    }

    /// Tokens per second, and at once, for people.
    #[must_use]
    pub fn tokens(self) -> (f64, f64) {
        (self.rate as f64 / TOKEN as f64, self.burst as f64 / TOKEN as f64)
    }

    /// The larger of both, by part.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { rate: self.rate.max(other.rate), burst: self.burst.max(other.burst) }
    }

    /// The smaller of both, by part.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { rate: self.rate.min(other.rate), burst: self.burst.min(other.burst) }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { rate: self.rate.saturating_add(other.rate), burst: self.burst.saturating_add(other.burst) }
    }

    /// What is left without the other, by part; never less than nothing.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { rate: self.rate.saturating_sub(other.rate), burst: self.burst.saturating_sub(other.burst) }
    }

    /// Whether both parts are as large as the other's.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.rate >= other.rate && self.burst >= other.burst
    }

    /// `part` of `whole` of it, rounded down; all of it when the whole is nothing.
    #[must_use]
    pub fn part(self, part: u64, whole: u64) -> Self {
        Self { rate: scale(self.rate, part, whole), burst: scale(self.burst, part, whole) }
    }
}

/// `amount · part / whole`, rounded down, at most the amount.
pub(super) fn scale(amount: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(amount) * u128::from(part.min(whole));
    product.checked_div(u128::from(whole)).map_or(amount, |scaled| u64::try_from(scaled).unwrap_or(amount))
}
