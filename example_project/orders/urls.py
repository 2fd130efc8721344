from django.urls import path

from orders import views

app_name = "orders"
urlpatterns = [
    path("", views.index, name="index"),
    path("events/", views.events, name="events"),
    path("receive/", views.receive, name="receive"),
    path("advance/", views.advance, name="advance"),
]
