//! Writing an inference request.
use serde_json::value::RawValue;

/// The elements of a tensor, as JSON.
#[derive(Debug, Default)]
pub(crate) struct Column {
    json: Vec<u8>,
    count: usize,
}

impl Column {
    /// Adds a text.
    pub(crate) fn text(&mut self, text: &str) {
        self.separate();
        serde_json::to_writer(&mut self.json, text).expect("texts can be written to memory");
    }

    /// Adds a number.
    pub(crate) fn number(&mut self, number: i64) {
        self.separate();
        self.json.extend_from_slice(number.to_string().as_bytes());
    }

    fn separate(&mut self) {
        if self.count > 0 {
            self.json.push(b',');
        }
        self.count += 1;
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

/// A request in the making: `{"inputs":[…],"parameters":{"llm_parameters":{…}}}`.
#[derive(Debug, Default)]
pub(crate) struct Inference {
    inputs: Vec<u8>,
    options: Vec<u8>,
}

impl Inference {
    /// Adds a tensor of texts.
    pub(crate) fn texts(&mut self, name: &str, column: &Column) {
        let shape = column.count.to_string();
        self.tensor(name, "BYTES", &shape, column);
    }

    /// Adds one of a single text.
    pub(crate) fn single(&mut self, name: &str, text: &str) {
        let mut column = Column::default();
        column.text(text);
        self.texts(name, &column);
    }

    /// Adds one of numbers, row by row.
    pub(crate) fn numbers(&mut self, name: &str, rows: usize, column: &Column) {
        let shape = format!("{rows},{}", column.count / rows.max(1));
        self.tensor(name, "INT64", &shape, column);
    }

    fn tensor(&mut self, name: &str, datatype: &str, shape: &str, column: &Column) {
        if !self.inputs.is_empty() {
            self.inputs.push(b',');
        }
        let text = if datatype == "BYTES" {
            r#","parameters":{"content_type":"str"}"#
        } else {
            ""
        };
        let head = format!(
            r#"{{"name":"{name}","shape":[{shape}],"datatype":"{datatype}"{text},"data":["#
        );
        self.inputs.extend_from_slice(head.as_bytes());
        self.inputs.extend_from_slice(&column.json);
        self.inputs.extend_from_slice(b"]}");
    }

    /// Adds an option as it was written.
    pub(crate) fn option(&mut self, name: &str, value: &RawValue) {
        if !self.options.is_empty() {
            self.options.push(b',');
        }
        serde_json::to_writer(&mut self.options, name).expect("texts can be written to memory");
        self.options.push(b':');
        self.options.extend_from_slice(value.get().as_bytes());
    }

    pub(crate) fn body(mut self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.inputs.len() + self.options.len() + 64);
        body.extend_from_slice(b"{\"inputs\":[");
        body.append(&mut self.inputs);
        body.push(b']');
        if !self.options.is_empty() {
            body.extend_from_slice(b",\"parameters\":{\"llm_parameters\":{");
            body.append(&mut self.options);
            body.extend_from_slice(b"}}");
        }
        body.push(b'}');
        body
    }
}
