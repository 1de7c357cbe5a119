"""Lists a broker's topics, as `kafka-topics.sh --list --bootstrap-server BROKER` does."""

import sys

from confluent_kafka.admin import AdminClient

admin = AdminClient({"bootstrap.servers": sys.argv[1]})
print("\n".join(sorted(admin.list_topics(timeout=10).topics)))
