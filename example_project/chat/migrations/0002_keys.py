# ruff: noqa: RUF012
from typing import Any

from django.db import migrations, models


def count_again(apps: Any, schema_editor: Any) -> None:
    """Delete all tallies: it is unknown up to which message the old ones count."""
    apps.get_model("chat", "Tally").objects.all().delete()


class Migration(migrations.Migration):
    dependencies = [("chat", "0001_initial")]

    operations = [
        migrations.AddField("Message", "key", models.CharField(max_length=64, null=True)),
        migrations.AddConstraint(
            "Message", models.UniqueConstraint(fields=["room", "key"], name="chat_stored_once")
        ),
        migrations.AddField("Tally", "counted_to", models.PositiveBigIntegerField(default=0)),
        migrations.RunPython(count_again, migrations.RunPython.noop),
    ]
