//! Shares and tables for the pages that a person reads.
use std::fmt::Write as _;

/// Columns of a whole bar.
const WIDTH: usize = 20;

/// A share with its bar: ` 50.0 % ██████████░░░░░░░░░░`.
pub(crate) fn share(percent: f64) -> String {
    let shown = percent.clamp(0.0, 100.0);
    let mut filled = (shown / 100.0 * WIDTH as f64).round() as usize;
    if shown > 0.0 {
        // A small share is still one.
        filled = filled.max(1);
    }
    format!(
        "{percent:>5.1} % {}{}",
        "█".repeat(filled),
        "░".repeat(WIDTH.saturating_sub(filled))
    )
}

/// Rows with columns padded by spaces, two between; each line begins with `indent`.
pub(crate) fn columns(indent: &str, rows: &[Vec<String>]) -> String {
    let mut widths = Vec::<usize>::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a text cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_drawn_to_scale_and_never_overflow() {
        assert_eq!(
            share(50.0),
            format!(" 50.0 % {}{}", "█".repeat(10), "░".repeat(10))
        );
        assert_eq!(share(0.0), format!("  0.0 % {}", "░".repeat(20)));
        assert!(share(0.01).contains('█'));
        for odd in [100.0, 250.0, -3.0, f64::NAN] {
            let blocks = share(odd).chars().filter(|c| "█░".contains(*c)).count();
            assert_eq!(blocks, 20, "{odd}");
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "b"], ["ccc", "d"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns("  ", &rows), "  a    b\n  ccc  d\n");
    }
}
