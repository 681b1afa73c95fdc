// Command kstatus reads Kubernetes objects, one JSON document after the other, and prints for each what kstatus makes of
// it, as Flux does: its status, a tab, and the message.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func main() {
	documents := json.NewDecoder(os.Stdin)
	for {
		var document json.RawMessage
		switch err := documents.Decode(&document); {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			fail(err)
		}
		// It keeps whole numbers whole, which kstatus insists on.
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(document); err != nil {
			fail(err)
		}
		result, err := status.Compute(object)
		if err != nil {
			fail(err)
		}
		fmt.Printf("%s\t%s\n", result.Status, strings.ReplaceAll(result.Message, "\n", " "))
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "kstatus:", err)
	os.Exit(1)
}
