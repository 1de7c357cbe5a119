//! The table and its JSON form.
use std::fmt;

use comfy_table::{Table, presets};
use serde_json::json;

/// One figure against its target.
struct Figure {
    section: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
    /// At most, or with `at_least` no less than this.
    target: Option<f64>,
    at_least: bool,
}

/// All figures of a run.
#[derive(Default)]
pub struct Report {
    figures: Vec<Figure>,
}

impl Report {
    /// Adds a figure that should be no more than its target.
    pub fn at_most(
        &mut self,
        section: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: f64,
    ) {
        self.add(section, what.into(), value, unit, Some(target), false);
    }
    /// Adds a figure that should be no less than its target.
    pub fn at_least(
        &mut self,
        section: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: f64,
    ) {
        self.add(section, what.into(), value, unit, Some(target), true);
    }
    /// Adds a figure without a target.
    pub fn shown(
        &mut self,
        section: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) {
        self.add(section, what.into(), value, unit, None, false);
    }

    fn add(
        &mut self,
        section: &'static str,
        what: String,
        value: f64,
        unit: &'static str,
        target: Option<f64>,
        at_least: bool,
    ) {
        eprintln!("{section}: {what}: {value:.3} {unit}");
        self.figures.push(Figure {
            section,
            what,
            value,
            unit,
            target,
            at_least,
        });
    }

    /// One line of JSON.
    pub fn json(&self) -> String {
        let figures: Vec<_> = self
            .figures
            .iter()
            .map(|f| json!({"section": f.section, "what": f.what, "value": f.value, "unit": f.unit, "target": f.target, "met": f.met()}))
            .collect();
        json!({ "figures": figures }).to_string()
    }
}

impl Figure {
    fn met(&self) -> Option<bool> {
        self.target.map(|t| {
            if self.at_least {
                self.value >= t
            } else {
                self.value <= t
            }
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["section", "what", "measured", "target", ""]);
        for f in &self.figures {
            let sign = if f.at_least { "≥" } else { "≤" };
            let target = f
                .target
                .map(|t| format!("{sign} {t} {}", f.unit))
                .unwrap_or_default();
            let met = match f.met() {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            };
            table.add_row([
                f.section.to_owned(),
                f.what.clone(),
                format!("{:.3} {}", f.value, f.unit),
                target,
                met.to_owned(),
            ]);
        }
        write!(to, "{table}")
    }
}
