from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = ()

    operations = (
        migrations.CreateModel(
            name="Answer",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("question", models.CharField(max_length=200)),
                ("since", models.TextField(default="")),
                ("text", models.TextField(default="")),
                ("is_whole", models.BooleanField(default=False)),
                ("asked_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={"ordering": ("-id",)},
        ),
    )
