//! Generates the bindings to the system's nbdkit-plugin.h and compiles the C shim.

use std::env;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    for input in ["wrapper.h", "include/nbd-shim.h", "src/host/shim.c"] {
        println!("cargo::rerun-if-changed={input}");
    }
    let bindings = bindgen::builder()
        .header("wrapper.h")
        .clang_arg("-Iinclude")
        .allowlist_type("nbdkit_(plugin|extents|exports)")
        .allowlist_function("nbdkit_(absolute_path|read_password|set_error|add_extent|strdup_intern|add_export|use_default_export|export_name|nanosleep)")
        .allowlist_function("nbd_shim_.*")
        .allowlist_var("NBDKIT_(API_VERSION|THREAD_MODEL_.*|FLAG_.*|FUA_.*|CACHE_.*|EXTENT_.*)")
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate()
        .map_err(|error| {
            format!(
                "{error}\nnbdkit-plugin.h and libclang are needed: apt-get install \
                 nbdkit-plugin-dev libclang-dev, or dnf install nbdkit-devel clang-devel"
            )
        })?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    bindings.write_to_file(out.join("bindings.rs"))?;

    cc::Build::new()
        .file("src/host/shim.c")
        .include("include")
        .flag("-Wall")
        .flag("-Wextra")
        .compile("nbd-shim");
    Ok(())
}
