//! IEEE 754 half precision, which the standard library does not have yet.

/// The exact value of a half.
pub(crate) fn to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let exponent = u32::from(half >> 10) & 0x1f;
    let fraction = u32::from(half & 0x3ff);
    match exponent {
        0 => {
            // Subnormal: a multiple of 2^-24, exact in single precision.
            let magnitude = f32::from(half & 0x3ff) * f32::from_bits((127 - 24) << 23);
            f32::from_bits(magnitude.to_bits() | sign)
        }
        0x1f => f32::from_bits(sign | 0x7f80_0000 | (fraction << 13)),
        _ => f32::from_bits(sign | ((exponent + 112) << 23) | (fraction << 13)),
    }
}

/// The nearest half, ties to even; too large a value becomes infinite.
pub(crate) fn from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = u16::try_from((bits >> 16) & 0x8000).unwrap_or_default();
    let magnitude = bits & 0x7fff_ffff;
    let rounded = if magnitude > 0x7f80_0000 {
        // A NaN stays one, with the top of its payload.
        0x7e00 | ((magnitude >> 13) & 0x3ff)
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else if magnitude >= 0x3880_0000 {
        shift_to_even(magnitude - (112 << 23), 13)
    } else {
        let exponent = magnitude >> 23;
        let mantissa = (magnitude & 0x7f_ffff) | 0x80_0000;
        match 126u32.checked_sub(exponent) {
            Some(shift) if shift < 25 => shift_to_even(mantissa, shift),
            _ => 0,
        }
    };
    sign | u16::try_from(rounded).unwrap_or(0x7c00)
}

fn shift_to_even(value: u32, shift: u32) -> u32 {
    let kept = value >> shift;
    let rest = value & ((1 << shift) - 1);
    let tie = 1 << (shift - 1);
    kept + u32::from(rest > tie || (rest == tie && kept & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives() {
        for half in 0..=u16::MAX {
            let back = from_f32(to_f32(half));
            if to_f32(half).is_nan() {
                assert!(to_f32(back).is_nan());
            } else {
                assert_eq!(back, half, "{half:#x}");
            }
        }
    }

    #[test]
    fn known_values_and_rounding() {
        for (value, half) in [
            (1.0, 0x3c00),
            (-2.0, 0xc000),
            (65504.0, 0x7bff),
            (65519.0, 0x7bff),
            (65520.0, 0x7c00),
            (1e10, 0x7c00),
            (5.960_464_5e-8, 0x0001),
            (2.980_232_2e-8, 0x0000),
            (2.980_232_6e-8, 0x0001),
            (1.000_488_3, 0x3c00),
            (1.001_464_8, 0x3c02),
            (0.1, 0x2e66),
        ] {
            assert_eq!(from_f32(value), half, "{value}");
        }
    }
}
