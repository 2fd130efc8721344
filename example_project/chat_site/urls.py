from django.urls import include, path

urlpatterns = [
    path("", include("chat.urls")),
    path("orders/", include("orders.urls")),
    path("tokens/", include("tokens.urls")),
]
