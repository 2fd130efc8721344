# ruff: noqa: RUF012
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Tally",
            fields=[
                ("room", models.CharField(max_length=50, primary_key=True, serialize=False)),
                ("messages", models.PositiveIntegerField(default=0)),
                ("words", models.PositiveIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="Message",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("room", models.CharField(max_length=50)),
                ("author", models.CharField(max_length=30)),
                ("text", models.TextField(max_length=1000)),
                ("sent_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "ordering": ("id",),
                "indexes": [models.Index(fields=["room", "id"], name="chat_room_history")],
            },
        ),
    ]
