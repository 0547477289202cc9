// sqs-consumer, 16 consumers: PutItem for each message of a batch side by side, one send for each Region; the library
// deletes.
import { ConditionalCheckFailedException, DynamoDBClient, PutItemCommand } from "@aws-sdk/client-dynamodb";
import { SendMessageBatchCommand, SQSClient } from "@aws-sdk/client-sqs";
import { Consumer } from "sqs-consumer";

const CONSUMERS = 16;
const { MASTER_QUEUE_URL, LEDGER_TABLE, REGIONS, AWS_REGION } = process.env;
const regions = Object.entries(JSON.parse(REGIONS));
const agent = { maxSockets: 200 };
const client = (Kind, region) => new Kind({ region, requestHandler: { httpAgent: agent, httpsAgent: agent } });

const sqs = client(SQSClient, AWS_REGION);
const table = client(DynamoDBClient, AWS_REGION);
const senders = regions.map(([region, url]) => ({ url, sqs: client(SQSClient, region) }));
let turn = 0;

async function claimed(message) {
  const { request_id } = JSON.parse(message.Body);
  const ConditionExpression = "attribute_not_exists(request_id)";
  try {
    await table.send(
      new PutItemCommand({ TableName: LEDGER_TABLE, Item: { request_id: { S: request_id } }, ConditionExpression }),
    );
    return true;
  } catch (refusal) {
    if (refusal instanceof ConditionalCheckFailedException) return false;
    throw refusal;
  }
}

async function handleMessageBatch(messages) {
  const ours = await Promise.all(messages.map(claimed));
  const chosen = new Map();
  for (const message of messages.filter((_, number) => ours[number])) {
    const sender = senders[turn++ % senders.length];
    chosen.set(sender, [...(chosen.get(sender) ?? []), message.Body]);
  }
  await Promise.all(
    [...chosen].map(([sender, bodies]) => {
      const Entries = bodies.map((MessageBody, number) => ({ Id: `${number}`, MessageBody }));
      return sender.sqs.send(new SendMessageBatchCommand({ QueueUrl: sender.url, Entries }));
    }),
  );
}

for (let number = 0; number < CONSUMERS; number++) {
  const consumer = Consumer.create({ queueUrl: MASTER_QUEUE_URL, sqs, batchSize: 10, handleMessageBatch });
  consumer.on("error", console.error);
  consumer.start();
}
