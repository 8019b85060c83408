// Command ingress serves HTTP and HTTPS to the outside and passes requests on to the endpoints that Ingresses name.
package main

import (
	"os"

	"podwire.dev/services/ingress/app"
)

func main() { os.Exit(app.Main(os.Args[1:])) }
