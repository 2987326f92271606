use pgbox::image::*;
#[test]
fn smoke() {
    let Ok(src) = std::env::var("SMOKE_SRC") else { return };
    let root = std::env::var("SMOKE_ROOT").unwrap();
    let store = Store::open(root.as_ref()).unwrap();
    let t = std::time::Instant::now();
    match store.import(src.as_ref(), None, &Silent) {
        Ok(image) => { println!("{:?} {:?}", image.names, image.layers); println!("{:?}", image.config.cmd) }
        Err(e) => println!("{e:#}"),
    }
    println!("import {:?}", t.elapsed());
    let t = std::time::Instant::now();
    store.import(src.as_ref(), None, &Silent).map(|_| ()).unwrap();
    println!("again {:?}", t.elapsed());
    println!("{:#}", store.resolve("nosuch").unwrap_err());
}
