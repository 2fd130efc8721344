from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = ()

    operations = (
        migrations.CreateModel(
            name="Order",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("what", models.CharField(max_length=50)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("received", "Received"),
                            ("packed", "Packed"),
                            ("sent", "Sent"),
                            ("delivered", "Delivered"),
                        ],
                        default="received",
                        max_length=20,
                    ),
                ),
                ("changed_at", models.DateTimeField(auto_now=True)),
            ],
            options={"ordering": ("-id",)},
        ),
    )
