// The AWS SDK for Go v2, 32 goroutines: receive ten, PutItem for each of them side by side, then one send for each
// Region and one delete.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	table "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	queue "github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

const goroutines = 32

var (
	ctx     = context.Background()
	master  = aws.String(os.Getenv("MASTER_QUEUE_URL"))
	ledger  = aws.String(os.Getenv("LEDGER_TABLE"))
	unknown = aws.String("attribute_not_exists(request_id)")
	turn    atomic.Uint64
	senders []sender
	home    *sqs.Client
	claims  *dynamodb.Client
)

type sender struct {
	url    string
	client *sqs.Client
}

func claimed(body string) (bool, error) {
	var request struct {
		ID string `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(body), &request); err != nil {
		return false, err
	}
	item := map[string]table.AttributeValue{"request_id": &table.AttributeValueMemberS{Value: request.ID}}
	_, err := claims.PutItem(ctx, &dynamodb.PutItemInput{TableName: ledger, Item: item, ConditionExpression: unknown})
	var taken *table.ConditionalCheckFailedException
	if errors.As(err, &taken) {
		return false, nil
	}
	return err == nil, err
}

// each runs work for every number below count side by side and returns one of the errors.
func each(count int, work func(number int) error) error {
	failures := make([]error, count)
	var all sync.WaitGroup
	all.Add(count)
	for number := 0; number < count; number++ {
		go func(number int) {
			defer all.Done()
			failures[number] = work(number)
		}(number)
	}
	all.Wait()
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	return nil
}

func poll() error {
	answer, err := home.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: master, MaxNumberOfMessages: 10, WaitTimeSeconds: 20,
	})
	if err != nil || len(answer.Messages) == 0 {
		return err
	}
	ours := make([]bool, len(answer.Messages))
	err = each(len(ours), func(number int) (err error) {
		ours[number], err = claimed(*answer.Messages[number].Body)
		return err
	})
	if err != nil {
		return err
	}
	chosen := make([][]queue.SendMessageBatchRequestEntry, len(senders))
	done := make([]queue.DeleteMessageBatchRequestEntry, len(ours))
	for number, message := range answer.Messages {
		id := aws.String(strconv.Itoa(number))
		done[number] = queue.DeleteMessageBatchRequestEntry{Id: id, ReceiptHandle: message.ReceiptHandle}
		if ours[number] {
			next := turn.Add(1) % uint64(len(senders))
			chosen[next] = append(chosen[next], queue.SendMessageBatchRequestEntry{Id: id, MessageBody: message.Body})
		}
	}
	err = each(len(senders), func(number int) error {
		if len(chosen[number]) == 0 {
			return nil
		}
		url := aws.String(senders[number].url)
		sent, err := senders[number].client.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{
			QueueUrl: url, Entries: chosen[number],
		})
		if err == nil && len(sent.Failed) > 0 {
			return errors.New(*sent.Failed[0].Code)
		}
		return err
	})
	if err != nil {
		return err
	}
	_, err = home.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: master, Entries: done})
	return err
}

func main() {
	pool := awshttp.NewBuildableClient().WithTransportOptions(func(transport *http.Transport) {
		transport.MaxIdleConnsPerHost = 400
		transport.MaxIdleConns = 400
	})
	common, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(pool))
	if err != nil {
		log.Fatal(err)
	}
	endpoint := os.Getenv("AWS_ENDPOINT_URL")
	at := func(region string) func(*sqs.Options) {
		return func(options *sqs.Options) {
			options.Region = region
			options.EndpointResolver = sqs.EndpointResolverFromURL(endpoint)
		}
	}
	home = sqs.NewFromConfig(common, at(common.Region))
	claims = dynamodb.NewFromConfig(common, func(options *dynamodb.Options) {
		options.EndpointResolver = dynamodb.EndpointResolverFromURL(endpoint)
	})
	var regions map[string]string
	if err := json.Unmarshal([]byte(os.Getenv("REGIONS")), &regions); err != nil {
		log.Fatal(err)
	}
	for region, url := range regions {
		senders = append(senders, sender{url, sqs.NewFromConfig(common, at(region))})
	}
	for number := 0; number < goroutines; number++ {
		go func() {
			for {
				if err := poll(); err != nil {
					log.Print(err)
				}
			}
		}()
	}
	select {}
}
