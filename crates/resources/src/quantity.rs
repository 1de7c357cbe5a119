//! Kubernetes quantities such as `100Ki`, `1.5Gi`, `1M` or `1e6`.
use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

/// An amount of bytes, written as Kubernetes writes quantities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Quantity {
    text: String,
    #[serde(skip)]
    #[schemars(skip)]
    bytes: u64,
}

/// Why a text is not an amount of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form of a quantity.
    #[error(
        "invalid quantity \"{0}\", expected a number with an optional suffix such as 100Ki, 1.5Gi or 1M"
    )]
    Form(String),
    /// Less than zero.
    #[error("quantity \"{0}\" is negative")]
    Negative(String),
    /// Not a whole number of bytes.
    #[error("quantity \"{0}\" is not a whole number of bytes")]
    Fraction(String),
    /// More than a signed 64-bit number holds.
    #[error("quantity \"{0}\" is too large")]
    TooLarge(String),
}

impl Quantity {
    /// The amount in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = parse(text)?;
        Ok(Self {
            text: text.to_owned(),
            bytes,
        })
    }
}

/// A multiplier: a power of two or of ten.
enum Scale {
    Binary(u32),
    Decimal(i32),
}

fn parse(text: &str) -> Result<u64, QuantityError> {
    let form = || QuantityError::Form(text.to_owned());
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(form());
    }
    let scale = scale(suffix).ok_or_else(form)?;
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    if negative {
        return Err(QuantityError::Negative(text.to_owned()));
    }
    let too_large = || QuantityError::TooLarge(text.to_owned());
    // 38 digits are more than any amount that could still be reduced to 64 bits is written with.
    let mantissa: u128 = digits.parse().map_err(|_| too_large())?;
    let places = i32::try_from(fraction.len()).map_err(|_| too_large())?;
    let (mantissa, exponent) = match scale {
        Scale::Binary(shift) => (
            mantissa.checked_mul(1 << shift).ok_or_else(too_large)?,
            -places,
        ),
        Scale::Decimal(power) => (mantissa, power.saturating_sub(places)),
    };
    let power = 10u128.checked_pow(exponent.unsigned_abs());
    let value = match power {
        Some(power) if exponent >= 0 => mantissa.checked_mul(power).ok_or_else(too_large)?,
        None if exponent >= 0 => return Err(too_large()),
        Some(power) if mantissa.is_multiple_of(power) => mantissa / power,
        _ => return Err(QuantityError::Fraction(text.to_owned())),
    };
    i64::try_from(value)
        .map(i64::unsigned_abs)
        .map_err(|_| too_large())
}

fn scale(suffix: &str) -> Option<Scale> {
    Some(match suffix {
        "Ki" => Scale::Binary(10),
        "Mi" => Scale::Binary(20),
        "Gi" => Scale::Binary(30),
        "Ti" => Scale::Binary(40),
        "Pi" => Scale::Binary(50),
        "Ei" => Scale::Binary(60),
        "n" => Scale::Decimal(-9),
        "u" => Scale::Decimal(-6),
        "m" => Scale::Decimal(-3),
        "" => Scale::Decimal(0),
        "k" => Scale::Decimal(3),
        "M" => Scale::Decimal(6),
        "G" => Scale::Decimal(9),
        "T" => Scale::Decimal(12),
        "P" => Scale::Decimal(15),
        "E" => Scale::Decimal(18),
        other => Scale::Decimal(other.strip_prefix(['e', 'E'])?.parse().ok()?),
    })
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a quantity such as 100Ki, 1.5Gi or 1M")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn documented_forms() {
        for (text, bytes) in [
            ("0", 0),
            ("100Ki", 102_400),
            ("1.5Ki", 1536),
            ("1M", 1_000_000),
            ("1Mi", 1_048_576),
            ("0.5Gi", 536_870_912),
            ("1e6", 1_000_000),
            ("1E3", 1000),
            ("12e-1", 0),
            ("2000m", 2),
            ("+7", 7),
            (".5k", 500),
            ("1E", 1_000_000_000_000_000_000),
            ("007", 7),
        ] {
            let parsed = text.parse::<Quantity>();
            if text == "12e-1" {
                assert_eq!(parsed, Err(QuantityError::Fraction(text.to_owned())));
            } else {
                assert_eq!(parsed.map(|q| q.bytes()), Ok(bytes), "{text}");
            }
        }
    }

    #[test]
    fn refused_forms() {
        for text in [
            "", "Ki", "1K", "1kb", "1 Mi", "1.2.3", "0x10", "1e", "NaN", "--1", "1Mi2",
        ] {
            assert!(
                matches!(text.parse::<Quantity>(), Err(QuantityError::Form(_))),
                "{text}"
            );
        }
        assert!(matches!(
            "-1".parse::<Quantity>(),
            Err(QuantityError::Negative(_))
        ));
        assert!(matches!(
            "1500m".parse::<Quantity>(),
            Err(QuantityError::Fraction(_))
        ));
        assert!(matches!(
            "16Ei".parse::<Quantity>(),
            Err(QuantityError::TooLarge(_))
        ));
        assert!(matches!(
            "1e999999999".parse::<Quantity>(),
            Err(QuantityError::TooLarge(_))
        ));
    }

    proptest! {
        #[test]
        fn whole_numbers_are_themselves(bytes in 0..=i64::MAX) {
            prop_assert_eq!(bytes.to_string().parse::<Quantity>().map(|q| q.bytes()), Ok(bytes.unsigned_abs()));
        }

        #[test]
        fn never_panics(text in "[-+0-9.eEKMGTPinumk]{0,24}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
