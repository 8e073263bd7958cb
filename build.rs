// SPDX-License-Identifier: BSD-3-Clause
//! Generates the bindings to the system's nbdkit-plugin.h and compiles the C shim.

use std::env;
use std::error::Error;
use std::panic;
use std::path::PathBuf;
use std::process::exit;

fn main() -> Result<(), Box<dyn Error>> {
    // Filters may have threads that are inside the plugin when nbdkit unloads it.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    for input in ["wrapper.h", "include/nbd-shim.h", "src/host/shim.c"] {
        println!("cargo::rerun-if-changed={input}");
    }
    // Without libclang bindgen panics.
    let report = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let result = panic::catch_unwind(bindings);
    panic::set_hook(report);
    let bindings = match result {
        Ok(Ok(bindings)) => bindings,
        Ok(Err(error)) => give_up(&error.to_string()),
        Err(cause) => give_up(cause.downcast_ref::<String>().map_or("", String::as_str)),
    };
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

fn bindings() -> Result<bindgen::Bindings, bindgen::BindgenError> {
    bindgen::builder()
        .header("wrapper.h")
        .clang_arg("-Iinclude")
        .allowlist_type("nbdkit_(plugin|extents|exports)")
        .allowlist_function("nbdkit_(absolute_path|read_password|set_error|add_extent|strdup_intern|add_export|use_default_export|export_name|is_tls|nanosleep|stdio_safe)")
        .allowlist_function("nbd_shim_.*")
        .allowlist_var("NBDKIT_(API_VERSION|THREAD_MODEL_.*|FLAG_.*|FUA_.*|CACHE_.*|EXTENT_.*)")
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate()
}

/// Cargo shows `cargo::error` lines in every case, and what is on stderr below them.
fn give_up(cause: &str) -> ! {
    for line in cause.lines() {
        println!("cargo::error={line}");
    }
    println!("cargo::error=nbdkit's header, and libclang with clang's own headers, are needed:");
    println!(
        "cargo::error=  Debian: apt-get install --no-install-recommends nbdkit-plugin-dev libclang-dev libc6-dev"
    );
    println!("cargo::error=  Fedora: dnf install nbdkit-devel clang-devel glibc-devel");
    exit(1)
}
