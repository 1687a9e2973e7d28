//! Figures that tests leave for whoever ran them: one file each, in the directory that a variable of the environment names.

use std::path::Path;
use std::time::Duration;

use crate::LabError;

/// Prints a figure, and leaves it as `{NAME: FIGURE}` in `NAME.json`, if there is a directory.
pub fn leave(variable: &str, name: &str, figure: &serde_json::Value) -> Result<(), LabError> {
    println!("{name}: {figure}");
    let Some(directory) = std::env::var_os(variable) else {
        return Ok(());
    };
    let file = Path::new(&directory).join(format!("{name}.json"));
    let line = serde_json::json!({ name: figure }).to_string();
    std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(&file, line))
        .map_err(LabError::io(file.display().to_string()))
}

/// The same of the worst of some times, in milliseconds.
pub fn leave_worst(variable: &str, name: &str, times: &[Duration]) -> Result<(), LabError> {
    let worst = times.iter().max().copied().unwrap_or_default();
    let figure = serde_json::json!({"times": times.len(), "worst_ms": worst.as_millis() as u64});
    leave(variable, name, &figure)
}
