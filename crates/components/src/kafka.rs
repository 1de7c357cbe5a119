//! Apache Kafka, from Maven Central by its coordinates: for tests against the real one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::Cache;
use crate::command::{on_path, run};
use crate::pins;

/// An installed Kafka: jars, its logging, and an archive of loaded classes that halves the time of a start.
#[derive(Clone, Debug)]
pub struct Kafka {
    folder: PathBuf,
    java: PathBuf,
    tools: Option<PathBuf>,
}

impl Cache {
    /// Returns Apache Kafka; needs Java 17 or newer, and Maven where it is not yet installed. For tests.
    pub fn kafka(&self) -> Result<Kafka> {
        let java = on_path("java")
            .context("Kafka runs on java, which is not on PATH: install Java 17 or newer")?;
        let name = format!("kafka-{}", pins::KAFKA);
        let folder = self.install(&name, pins::KAFKA_POM, |folder| {
            jars(folder, pins::KAFKA_POM)?;
            fs::write(folder.join("log4j2.properties"), pins::KAFKA_LOGGING)?;
            archive(&Kafka {
                folder: folder.to_owned(),
                java: java.clone(),
                tools: None,
            })
        })?;
        Ok(Kafka {
            folder,
            java,
            tools: None,
        })
    }

    /// Returns Apache Kafka with its command-line tools. For tests.
    pub fn kafka_tools(&self) -> Result<Kafka> {
        let name = format!("kafka-tools-{}", pins::KAFKA);
        let tools = self.install(&name, pins::KAFKA_TOOLS_POM, |folder| {
            jars(folder, pins::KAFKA_TOOLS_POM)
        })?;
        Ok(Kafka {
            tools: Some(tools),
            ..self.kafka()?
        })
    }
}

/// Fetches what a pom names into `libs`.
fn jars(folder: &Path, pom: &str) -> Result<()> {
    let maven =
        on_path("mvn").context("Kafka is fetched with mvn, which is not on PATH: install Maven")?;
    let path = folder.join("pom.xml");
    fs::write(&path, pom)?;
    let plugin = format!(
        "org.apache.maven.plugins:maven-dependency-plugin:{}:copy-dependencies",
        pins::MAVEN_DEPENDENCY
    );
    // Strict: a file that does not have the sum its repository states is an error.
    run(Command::new(maven)
        .args(["-q", "-B", "--strict-checksums", "-f"])
        .arg(&path)
        .arg(plugin)
        .arg("-DincludeScope=runtime")
        .arg(format!(
            "-DoutputDirectory={}",
            folder.join("libs").display()
        )))
}

/// Writes the archive of classes: those that formatting a folder loads are most of a broker's.
fn archive(kafka: &Kafka) -> Result<()> {
    let scratch = kafka.folder.join("scratch");
    fs::create_dir_all(&scratch)?;
    let properties = scratch.join("server.properties");
    let logs = scratch.join("log");
    fs::write(
        &properties,
        format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@localhost:1\n\
             controller.listener.names=CONTROLLER\nlisteners=PLAINTEXT://localhost:2,CONTROLLER://localhost:1\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\nlog.dirs={}\n",
            logs.display()
        ),
    )?;
    let mut format = kafka.java();
    format.arg(format!(
        "-XX:ArchiveClassesAtExit={}",
        kafka.archive().display()
    ));
    format
        .args([
            "kafka.tools.StorageTool",
            "format",
            "-t",
            "AAAAAAAAAAAAAAAAAAAAAA",
            "-c",
        ])
        .arg(&properties);
    run(&mut format)?;
    fs::remove_dir_all(&scratch)?;
    Ok(())
}

impl Kafka {
    /// Where it is installed.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn archive(&self) -> PathBuf {
        self.folder.join("kafka.jsa")
    }

    /// The program to run, and its arguments before the name of the class.
    pub fn program(&self) -> (PathBuf, Vec<String>) {
        let folder = self.folder.display();
        let mut arguments: Vec<String> = [
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            // What the JVM itself would say of the archive, for one, goes nowhere.
            "-Xlog:disable",
            "-Xlog:all=error:stderr",
            "-Djava.awt.headless=true",
        ]
        .map(ToOwned::to_owned)
        .into();
        arguments.push(format!(
            "-Dlog4j2.configurationFile={folder}/log4j2.properties"
        ));
        if self.archive().exists() {
            arguments.push("-Xshare:auto".to_owned());
            arguments.push(format!(
                "-XX:SharedArchiveFile={}",
                self.archive().display()
            ));
        }
        arguments.push("-cp".to_owned());
        let mut classes = format!("{folder}/libs/*");
        if let Some(tools) = &self.tools {
            classes += &format!(":{}/libs/*", tools.display());
        }
        arguments.push(classes);
        (self.java.clone(), arguments)
    }

    /// A command that lacks only the name of the class and its arguments.
    pub fn java(&self) -> Command {
        let (program, arguments) = self.program();
        let mut command = Command::new(program);
        command.args(arguments);
        command
    }
}
