//! What must hold of any `config.pbtxt`.
use seldon_agent::repository::renamed;

/// It is refused, or has the new name, and a second time nothing goes but that name.
pub fn config(text: &str) {
    let Ok(changed) = renamed(text, "m_1") else {
        return;
    };
    let rest = changed
        .strip_prefix("name: \"m_1\"\n")
        .unwrap_or_else(|| panic!("{text:?} became {changed:?}"));
    assert!(rest.len() <= text.len(), "{text:?} became {changed:?}");
    let again = renamed(&changed, "m_1").expect("what was written is read");
    assert_eq!(again, format!("name: \"m_1\"\n\n{rest}"), "of {text:?}");
}
