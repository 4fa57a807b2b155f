//! Writes the seeds anew: `cargo run --example seeds`, in `fuzz/`.

use std::{fs, io};

fn main() -> io::Result<()> {
    for (target, seeds) in mmapd_fuzz::seeds() {
        let dir = format!("seeds/{target}");
        fs::create_dir_all(&dir)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(format!("{dir}/{number:02}"), seed)?;
        }
    }
    Ok(())
}
