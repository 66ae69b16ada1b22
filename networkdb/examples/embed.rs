//! Two embedded nodes, one table, one watch: `cargo run --example embed -p networkdb`.

use networkdb::node::{NetworkDb, NodeConfig, WatchEvent, WatchFilter};
use networkdb::{Key, NetworkId, TableName};

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let on_a_free_port = || NodeConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        ..NodeConfig::default()
    };
    let first = NetworkDb::start(on_a_free_port()).await?;
    let second = NetworkDb::start(on_a_free_port()).await?;
    second.join(&[first.gossip_addr().to_string()]).await?;

    let (network, table) = (NetworkId::new("demo")?, TableName::new("greetings")?);
    first.join_network(&network).await?;
    second.join_network(&network).await?;
    let mut watch = second.watch(WatchFilter::default()).await?;

    let key = Key::new("hello")?;
    first.create_entry(&network, &table, &key, "world").await?;
    if let Some(WatchEvent::Change(change)) = watch.next().await {
        println!("the second node was told: {change:?}");
    }
    println!("and reads: {:?}", second.entry(&network, &table, &key)?);

    second.close().await;
    first.close().await;
    Ok(())
}
